"""The model card of a package: README.md in the form that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_ee import __version__
from espnet_ee.files import atomic_write
from espnet_ee.host.compat import espnet_version
from espnet_ee.model.heads import mac_table
from espnet_ee.model.inputs import input_step, takes_audio
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.searching import GREEDY
from espnet_ee.score.page import markdown
from espnet_ee.score.points import Point, describe_policy, read_exits
from espnet_ee.store.export_stock import parameter_counts, stock_lacks
from espnet_ee.store.train_config import sampling_rate

_RAN = ("calibrated", "online")
_EXPORT = (
    "For people without espnet_ee: `espnet-ee export --model FOLDER --format stock --exit_layer K --out DIR` writes one exit",
    "of this model, downloaded to FOLDER, as a plain ESPnet model.",
)
_SECONDS = 10  # attention's cost grows with length: MACs per second are those of an utterance this long


@dataclass(frozen=True)
class Card:
    """What follows from no file.

    Attributes:
        name: of the model, such as ``owner/an4_ee_conformer``.
        licence: as the hub names it (``apache-2.0``, ``cc-by-4.0``, ...).
        training_data: one line.
        language: its code, such as ``en``; empty: not said.
        command: the command line that trained the model.
    """

    name: str
    licence: str
    training_data: str
    language: str = ""
    command: str = ""


def write_card(
    path: str | Path,
    card: Card,
    config: Mapping[str, Any],
    model: ESPnetASRModel,
    configs: Mapping[str, DecodingConfig],
    default: str | None,
    exits_csv: str | Path | None,
    exported: Mapping[str, Any] | None = None,
) -> None:
    """Writes the card atomically.

    Args:
        path: ``README.md``.
        card: what follows from no file.
        config: of the training.
        model: loaded.
        configs: decoding configurations by name.
        default: the name of the one that is used where none is asked for; None: the final exit.
        exits_csv: scores of stage 13; without them the card has no error rates.
        exported: what ``onnx/model.yaml`` tells; None: the package has none.
    """
    points = [] if exits_csv is None else read_exits(Path(exits_csv))
    lines = [*_front_matter(card, points), "", f"# {card.name}", ""]
    lines += ["Early-exit speech recognition: a CTC head after several blocks of one encoder, so that every utterance may stop"]
    lines += ["as soon as it is sure enough. Made with espnet_ee, on ESPnet; ESPnet alone cannot load it.", ""]
    lines += ["## Use", "", *_usage(card, config, model, default), *_device(exported), "", "## Exits", ""]
    lines += _exits(config, model, points, exported)
    lines += ["", "## Exit policies", "", *_policies(configs, model.encoder.exit_layers, default, points)]
    lines += ["", "## Training", "", f"- data: {card.training_data}", f"- encoder: `{config['encoder']}`, `{config['model']}`"]
    lines += [f"- command: `{_in_one_line(card.command)}`"] if card.command else []
    lines += [f"- licence: {card.licence}", f"- packed by espnet_ee {__version__} under ESPnet {espnet_version()}"]
    with atomic_write(path) as stream:
        stream.write("\n".join(lines) + "\n")


def _in_one_line(text: str) -> str:
    return " ".join(text.replace("`", "'").split())


def _front_matter(card: Card, points: Sequence[Point]) -> list[str]:
    front: dict[str, Any] = {"license": card.licence}
    if card.language:
        front["language"] = card.language
    # Neither library nor tag is "espnet": the hub would show how stock ESPnet loads a model, which cannot load this one.
    front.update(
        library_name="espnet_ee",
        pipeline_tag="automatic-speech-recognition",
        tags=["espnet_ee", "early-exit", "ctc", "audio", "automatic-speech-recognition"],
    )
    final = {point.set: point.wer for point in points if point.kind == "fixed"}  # the last exit comes last
    if final:
        front["model-index"] = [{"name": card.name, "results": [_result(name, wer) for name, wer in final.items()]}]
    return ["---", *yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip().split("\n"), "---"]


def _result(set_name: str, wer: float) -> dict[str, Any]:
    """A row of the hub's table of results."""
    return {
        "task": {"type": "automatic-speech-recognition", "name": "Automatic Speech Recognition"},
        "dataset": {"type": set_name, "name": set_name},
        "metrics": [{"type": "wer", "value": round(wer, 2), "name": "WER, final exit"}],
    }


def _usage(card: Card, config: Mapping[str, Any], model: ESPnetASRModel, default: str | None) -> list[str]:
    source = card.name if "/" in card.name else "package"  # a name that is none of the hub's is no address
    with_audio = takes_audio(model)
    audio = "a.wav" if with_audio else "features.npy"
    extras = "espnet,hub,ssl" if config["encoder"] == "early_exit_hf" else "espnet,hub"
    stops = f"the policy `{default}`" if default else "the final exit, so every block is computed"
    return [
        "```bash",
        f'pip install "espnet_ee[{extras}]"     # or, in a clone of its repository: pip install -e ".[{extras}]"',
        *([f"espnet-ee transcribe {audio} --model {source}"] if with_audio else []),
        "```",
        "",
        "```python",
        "from espnet_ee import EarlyExitASR",
        "",
        f'print(EarlyExitASR.from_pretrained("{source}").transcribe("{audio}").text)',
        "```",
        "",
        f"Without a word about when to stop, that is {stops}; `--policy NAME` (in Python `policy=`) names another one below.",
        "",
        *([] if stock_lacks(config) else _EXPORT),
    ]


def _device(exported: Mapping[str, Any] | None) -> list[str]:
    """How to use the ONNX files."""
    if exported is None:
        return []
    lines = ["", "`onnx/` holds the same model for devices: a graph for every segment between two exits"]
    stopping = exported.get("self_stopping")
    if stopping is None:
        return [f"{lines[0]}", f"{lines[1]}."]
    name = stopping.get("int8") or stopping["fp32"]
    lines[-1] += f", and `{name}`, which stops by itself (policy `{stopping['policy']['policy']}`)."
    if exported["features"]["kind"] != "kaldi_fbank":
        return lines
    call = f'sherpa_onnx.OfflineRecognizer.from_zipformer_ctc(model="onnx/{name}", tokens="onnx/tokens.txt")'
    return [*lines, f"sherpa-onnx runs it: `{call}`."]


def _exits(
    config: Mapping[str, Any], model: ESPnetASRModel, points: Sequence[Point], exported: Mapping[str, Any] | None
) -> list[str]:
    """A table of the exits: parameters, megabytes of the graphs up to it, compute, error rate on every scored set."""
    fixed = {(point.set, point.name): point.wer_text for point in points if point.kind == "fixed"}
    sets = list(dict.fromkeys(name for name, _ in fixed))
    table = mac_table(model)
    frames = _input_frames(config, model)
    sizes = {} if exported is None else {exit_["layer"]: exit_["mb"] for exit_ in exported["exits"]}
    kinds = list(next(iter(sizes.values()), {}))
    rows = []
    for layer, count in parameter_counts(model).items():
        macs = table.encoder_macs(layer, frames) + table.head_macs(layer, table.encoder_frames(frames))
        rates = [fixed.get((name, f"exit {layer}"), "") for name in sets]
        megabytes = [f"{sizes[layer][kind]:.1f}" for kind in kinds]
        rows.append([f"{layer}", f"{count:,}", *megabytes, f"{macs / _SECONDS / 1e6:.1f}", *rates])
    return [
        *markdown(
            ["exit", "parameters", *(f"MB {kind}" for kind in kinds), "MMACs/s", *(f"WER % {name}" for name in sets)], rows
        ),
        "",
        f"MMACs/s: million multiply-accumulates per second of audio, encoder and head, for {_SECONDS} s of audio.",
        "In brackets: 95 % intervals over new utterances of the same kind.",
    ]


def _input_frames(config: Mapping[str, Any], model: ESPnetASRModel) -> int:
    """Of _SECONDS of audio, as the encoder takes it in."""
    rate, conf = sampling_rate(dict(config)), config.get("frontend_conf") or {}
    step = input_step(model)
    if step is None:  # of stored features the configuration tells by which frontend they were made
        step = rate // 100 if config.get("frontend") == "kaldi_fbank" else conf.get("hop_length", 128)
    return _SECONDS * rate // int(step)


def _policies(
    configs: Mapping[str, DecodingConfig], exit_layers: Sequence[int], default: str | None, points: Sequence[Point]
) -> list[str]:
    """A table of the policies: settings, and what each reached on every scored set, as it ran or by its replay."""
    reached = {kind: {(p.set, p.name.removeprefix("decode_")): p for p in points if p.kind == kind} for kind in _RAN}
    scored = {**reached["calibrated"], **reached["online"]}
    sets = list(dict.fromkeys(name for name, _ in scored))
    rows = []
    for name, config in configs.items():
        cells = [f"`{name}`" + (" (default)" if name == default else ""), describe_policy(config.policy_for(exit_layers))]
        for point in (scored.get((each, name)) for each in sets):
            cells += [point.wer_text, f"{point.macs_per_second / 1e6:.1f}", f"{point.depth:.2f}"] if point else ["", "", ""]
        rows.append(cells)
    head = ["name", "policy", *(f"{column} {name}" for name in sets for column in ("WER %", "MMACs/s", "mean exit"))]
    if not rows:
        return ["None: every utterance is computed up to the last exit."]
    searches = list(dict.fromkeys(str(config.search) for config in configs.values()))
    said = [] if searches == [GREEDY] else ["", f"Search of the text: {'; '.join(searches)}."]
    return [*markdown(head, rows), *said]
