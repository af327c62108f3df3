"""What an engine without torch must know of a model beside its graphs: ``model.yaml`` and ``tokens.txt``."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_ee import __version__
from espnet_ee.errors import UserError
from espnet_ee.exported import DESCRIPTION, FORMAT
from espnet_ee.files import read_yaml
from espnet_ee.frontend.kaldi_fbank import KaldiFbank
from espnet_ee.model.heads import mac_table
from espnet_ee.model.inputs import input_step, input_width
from espnet_ee.score.points import read_exits
from espnet_ee.store.export_stock import parameter_counts

_BLANKS = ("<blk>", "<eps>", "<blank>")  # what sherpa-onnx takes for it
_SPACE, _SPACE_THERE = "<space>", "▁"


def describe_model(model: ESPnetASRModel, sample_rate: int, exits_csv: Path | None = None) -> dict[str, Any]:
    """Everything of ``model.yaml`` that follows from a loaded model that takes audio of so many Hz, and from stage 13's scores.

    Raises:
        UserError: its frontend is none that an engine without torch has.
    """
    encoder = model.encoder
    hop = input_step(model)
    if getattr(model, "token_type", None) == "word":
        raise UserError("token_type: word: engines without torch join tokens without blanks; train with char or bpe")
    if getattr(model, "speech_volume", None) is not None:
        raise UserError("speech_volume_normalize: an exported model takes audio as it is; compute this one with torch")
    if encoder.conditioned:
        raise UserError(
            "interctc_use_conditioning: a segment that reads the exit below has no ONNX form; compute it with torch"
        )
    return {
        "format": FORMAT,
        "made_by": {"espnet_ee": __version__},
        "parameters_sha256": fingerprint(model),
        "sample_rate": sample_rate,
        "features": features_of(model, sample_rate),
        "normalize": "none",  # it is in the graph
        "min_frames": encoder.min_frames,
        "frame_seconds": None if hop is None else encoder.stride * hop / sample_rate,
        "vocabulary": len(model.token_list),
        "blank": model.blank_id,
        "tokens": "tokens.txt",
        "exit_layers": list(encoder.exit_layers),
        "exits": exits_of(model, exits_csv),
        "macs": asdict(mac_table(model)),
    }


def features_of(model: ESPnetASRModel, sample_rate: int) -> dict[str, Any]:
    """How features are computed: ``kind`` and its settings."""
    frontend = model.frontend
    if model.encoder.takes == "samples":
        return {"kind": "samples", "fs": sample_rate}
    if frontend is None:
        return {"kind": "extracted", "n_mels": input_width(model)}
    if isinstance(frontend, KaldiFbank):
        return {"kind": "kaldi_fbank", "fs": sample_rate, "n_mels": frontend.n_mels}
    from espnet2.asr.frontend.default import DefaultFrontend  # here: it loads librosa, and packages are read without it

    if not isinstance(frontend, DefaultFrontend):
        raise UserError(f"frontend: {type(frontend).__name__} has no form without torch; use kaldi_fbank or default")
    stft, mel = frontend.stft, frontend.logmel.mel_options
    settings = ("n_fft", "win_length", "hop_length", "window", "center", "normalized")
    return {
        "kind": "default",
        "fs": mel["sr"],
        **{name: getattr(stft, name) for name in settings},
        **{name: mel[name] for name in ("n_mels", "fmin", "fmax", "htk")},
        "log_base": frontend.logmel.log_base,
    }


def exits_of(model: ESPnetASRModel, exits_csv: Path | None) -> list[dict[str, Any]]:
    """Of each exit: layer, parameters that are computed up to it, and its error rate in per cent on every scored set."""
    points = [] if exits_csv is None else [point for point in read_exits(exits_csv) if point.kind == "fixed"]
    exits = []
    for layer, count in parameter_counts(model).items():
        rates = {point.set: round(point.wer, 2) for point in points if point.name == f"exit {layer}"}
        exits.append({"layer": layer, "parameters": count, **({"wer": rates} if rates else {})})
    return exits


def fingerprint(model: ESPnetASRModel) -> str:
    """SHA-256 of a model's parameters: whether graphs were made of it."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_export(folder: Path, model: ESPnetASRModel) -> dict[str, Any]:
    """What ``model.yaml`` of an exported model's folder ``onnx/`` tells.

    Raises:
        UserError: it was exported from other parameters than the model's.
    """
    path = folder / DESCRIPTION
    description = read_yaml(path, "export the model again")
    if description.get("parameters_sha256") != fingerprint(model):
        raise UserError(f"{path}: was exported from other parameters; export the model again, or delete {folder}")
    return description


def token_lines(tokens: Sequence[str], blank: int) -> list[str]:
    """Lines of ``tokens.txt`` as sherpa-onnx reads them: ``symbol id``; ``▁`` becomes a space of the text."""
    symbols = list(tokens)
    if symbols[blank] not in _BLANKS:
        symbols[blank] = _BLANKS[0]
    if _SPACE_THERE not in symbols:
        symbols = [_SPACE_THERE if symbol == _SPACE else symbol for symbol in symbols]
    return [f"{symbol} {number}" for number, symbol in enumerate(symbols)]
