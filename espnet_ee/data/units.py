"""Whether a training set can teach its units: frames for every token of a text, and text for every unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from espnet_ee.data.datadir import DataDir, read_data_dir
from espnet_ee.errors import UserError
from espnet_ee.files import read_lines
from espnet_ee.subsampling import FAST, Convolutions, padded, subsampled

# Kernel and stride over time of the convolutions before the first block, by ESPnet's input_layer and by our subsampling.
SUBSAMPLING: dict[str, Convolutions] = {
    "linear": (),
    "conv2d1": ((3, 1), (3, 1)),
    "conv2d2": ((3, 2), (3, 1)),
    "conv2d": ((3, 2), (3, 2)),
    "conv2d6": ((3, 2), (5, 3)),
    "conv2d8": ((3, 2), (3, 2), (3, 2)),
    "conv1d1": ((3, 1), (3, 1)),
    "conv1d2": ((3, 1), (3, 2)),
    "conv1d3": ((3, 1), (5, 3)),
    **{str(factor): layers for factor, layers in FAST.items()},
    # Of samples: what wav2vec 2.0, HuBERT and WavLM have.
    "early_exit_hf": ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)),
}

LEAST_OCCURRENCES = 1000
"""A rule of thumb for BPE: of 494 occurrences a unit (train-clean-5, 256 units) CTC did not leave its plateau, of 93 (AN4, 80) it
overfits. Characters are never too many: there is nothing smaller to choose."""


def unit_warnings(data_dir: Path, token_dir: Path, token_type: str, config: Mapping[str, Any]) -> list[str]:
    """What is wrong with the units of a training before it starts: one line each, with the remedy.

    Args:
        data_dir: data directory of the training set.
        token_dir: of stage 5: tokens.txt, and bpe.model for ``bpe``.
        token_type: ``char`` or ``bpe``.
        config: ``frontend``, ``frontend_conf``, ``encoder_conf`` of the training. Where they say nothing of how many frames there
            will be, texts are not compared with them.

    Raises:
        UserError: a file is missing or broken.
    """
    data = read_data_dir(data_dir)
    encode = encoder_of(token_dir, token_type)
    frames, layers = feature_frames(data, config), convolutions(config)
    texts, occurrences, short = 0, 0, 0
    for utt_id, text in data.tables["text"].items():
        units = encode(text)
        texts, occurrences = texts + 1, occurrences + len(units)
        if frames and layers is not None:
            short += frames_needed(units) > subsampled(frames[utt_id], layers)
    warnings = []
    if short:
        coarser = "--token_type bpe" if token_type == "char" else "a higher --nbpe"
        warnings.append(
            f"{short} of {texts} training utterances ({100 * short / texts:.3g} %) have more tokens and repeats than the encoder "
            f"has frames (subsampling {subsampling(config)}) and will teach nothing: choose a lower subsampling or {coarser}"
        )
    kinds = max(1, len(read_lines(token_dir / "tokens.txt")) - 3)  # without blank, unknown, and end of sentence
    if token_type == "bpe" and occurrences < LEAST_OCCURRENCES * kinds:
        warnings.append(
            f"{kinds} BPE units, which occur {occurrences / kinds:.0f} times each on average: by a rule of thumb, below "
            f"{LEAST_OCCURRENCES} CTC may never write a word, or overfits; choose --token_type char or a lower --nbpe"
        )
    return warnings


def frames_needed(units: Sequence[Any]) -> int:
    """Least number of frames of a CTC alignment: units, and a blank between two that are the same.

    >>> frames_needed("HELLO")
    6
    """
    return len(units) + sum(a == b for a, b in pairwise(units))


def subsampling(config: Mapping[str, Any]) -> str:
    """Our encoders' ``subsampling``, or the ``input_layer`` of ESPnet's; a key of ``SUBSAMPLING``, if it is known."""
    encoder, conf = str(config.get("encoder")), config.get("encoder_conf") or {}
    if encoder == "early_exit_hf":
        return encoder
    if encoder in ("early_exit_fast_conformer", "early_exit_splitformer"):
        return str(conf.get("subsampling", 4))
    return str(conf.get("input_layer", "conv2d")) if encoder.endswith("former") else "unknown"


def convolutions(config: Mapping[str, Any]) -> Convolutions | None:
    """Those before the first block; None: not known."""
    layers = SUBSAMPLING.get(subsampling(config))
    streams = layers is not None and bool((config.get("encoder_conf") or {}).get("chunk_range"))
    return padded(layers or ()) if streams else layers


def feature_frames(data: DataDir, config: Mapping[str, Any]) -> Mapping[str, int] | None:
    """Frames (or samples) that the encoder gets, by utterance: stored ones, or what the frontend will make; None: they cannot be told."""
    stored, samples = data.tables.get("utt2num_frames"), data.tables.get("utt2num_samples")
    if stored:
        return {utt_id: int(count) for utt_id, count in stored.items()}
    if config.get("encoder") == "early_exit_hf":  # samples
        return {utt_id: int(count) for utt_id, count in samples.items()} if samples else None
    frontend, conf = config.get("frontend"), config.get("frontend_conf") or {}
    if not samples or not isinstance(conf.get("fs"), int) or not isinstance(conf.get("hop_length", 128), int):
        return None
    if frontend == "kaldi_fbank":
        hop = max(1, conf["fs"] // 100)
        return {utt_id: (int(count) + hop // 2) // hop for utt_id, count in samples.items()}
    hop = max(1, conf.get("hop_length", 128))
    return {utt_id: int(count) // hop + 1 for utt_id, count in samples.items()} if frontend == "default" else None


def encoder_of(token_dir: Path, token_type: str) -> Callable[[str], Sequence[Any]]:
    """What makes units of a text. Raises UserError if the BPE model is missing or none."""
    if token_type == "char":
        return lambda text: text
    import sentencepiece

    model = token_dir / "bpe.model"
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model.read_bytes()).encode
    except (OSError, RuntimeError):
        raise UserError(f"{model}: missing, or no sentencepiece model; run stage 5 again") from None
