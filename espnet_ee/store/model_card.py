"""The model card of a package: README.md in the form that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from espnet_ee import __version__
from espnet_ee.files import atomic_write
from espnet_ee.host.compat import espnet_version
from espnet_ee.policy.registry import build_policy
from espnet_ee.score.points import Point, describe_policy, read_exits
from espnet_ee.store.export_stock import exit_state
from espnet_ee.store.train_config import sampling_rate

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
    model: torch.nn.Module,
    policies: Mapping[str, Mapping[str, Any]],
    exits_csv: str | Path | None,
) -> None:
    """Writes the card atomically.

    Args:
        path: ``README.md``.
        card: what follows from no file.
        config: of the training.
        model: loaded.
        policies: by name: ``policy`` and ``policy_conf``.
        exits_csv: scores of stage 13; without them the card has no error rates.
    """
    points = [] if exits_csv is None else [p for p in read_exits(exits_csv) if p.kind in ("fixed", "online")]
    lines = [*_front_matter(card, points), "", f"# {card.name}", ""]
    lines += ["Early-exit speech recognition: a CTC head after several blocks of one encoder, so that every utterance may stop"]
    lines += ["as soon as it is sure enough. Made with espnet_ee.", "", "## Exits", ""]
    lines += _exits(config, model, points)
    lines += ["", "## Exit policies", "", *_policies(policies, points), "", "## Use", "", *_usage(card, config), ""]
    lines += ["## Training", "", f"- data: {card.training_data}", f"- encoder: `{config['encoder']}`, `{config['model']}`"]
    lines += [f"- command: `{_one_line(card.command)}`"] if card.command else []
    lines += [f"- licence: {card.licence}", f"- packed by espnet_ee {__version__} under ESPnet {espnet_version()}"]
    with atomic_write(path) as stream:
        stream.write("\n".join(lines) + "\n")


def _one_line(text: str) -> str:
    return " ".join(text.replace("`", "'").split())


def _front_matter(card: Card, points: Sequence[Point]) -> list[str]:
    front: dict[str, Any] = {"license": card.licence}
    if card.language:
        front["language"] = card.language
    front.update(
        library_name="espnet",
        pipeline_tag="automatic-speech-recognition",
        tags=["espnet", "espnet_ee", "early-exit", "ctc", "audio", "automatic-speech-recognition"],
    )
    final = {point.set: point.wer for point in points if point.kind == "fixed"}  # the last exit comes last
    if final:
        task = {"type": "automatic-speech-recognition", "name": "Automatic Speech Recognition"}
        results = [
            {
                "task": task,
                "dataset": {"type": name, "name": name},
                "metrics": [{"type": "wer", "value": round(wer, 2), "name": "WER, final exit"}],
            }
            for name, wer in final.items()
        ]
        front["model-index"] = [{"name": card.name, "results": results}]
    # The task stands there once for each set: written out, not as a YAML alias.
    dumper = type("NoAliases", (yaml.SafeDumper,), {"ignore_aliases": lambda self, data: True})
    return ["---", *yaml.dump(front, Dumper=dumper, sort_keys=False, allow_unicode=True).strip().split("\n"), "---"]


def _exits(config: Mapping[str, Any], model: torch.nn.Module, points: Sequence[Point]) -> list[str]:
    """A table of the exits: parameters, compute, error rate on every scored set."""
    sets = list(dict.fromkeys(point.set for point in points))
    wers = {(point.set, point.name): point.wer for point in points if point.kind == "fixed"}
    head = ["exit", "parameters", "MMACs/s", *(f"WER % {name}" for name in sets)]
    lines = ["|" + "|".join(head) + "|", "|---|" + "---:|" * (len(head) - 1)]
    shape = model.encoder.shape()
    conf = config.get("frontend_conf") or {}
    frames = _SECONDS * sampling_rate(dict(config)) // int(conf.get("hop_length", 128))
    learned = {value.data_ptr() for value in model.parameters()}
    for layer in model.encoder.exit_layers:
        count = sum(value.numel() for value in exit_state(model, layer).values() if value.data_ptr() in learned)
        macs = shape.segment_macs(frames, [layer])[0] + shape.head_macs(shape.encoder_frames(frames), model.vocab_size)
        rates = [f"{wers[name, f'exit {layer}']:.2f}" if (name, f"exit {layer}") in wers else "" for name in sets]
        lines.append("|" + "|".join([f"{layer}", f"{count:,}", f"{macs / _SECONDS / 1e6:.1f}", *rates]) + "|")
    return [
        *lines,
        "",
        f"MMACs/s: million multiply-accumulates per second of audio, encoder and head, for {_SECONDS} s of audio.",
    ]


def _policies(policies: Mapping[str, Mapping[str, Any]], points: Sequence[Point]) -> list[str]:
    lines = []
    for name, policy in policies.items():
        described = describe_policy(build_policy(policy["policy"], policy["policy_conf"]))
        scored = [point for point in points if point.kind == "online" and point.name == name.removeprefix("decode_")]
        rates = "".join(f"; {p.set}: WER {p.wer:.2f} %, mean exit {p.depth:.2f}" for p in scored)
        lines.append(f"- `{name}`: {described}{rates}")
    return lines or ["None: every utterance is computed up to the last exit."]


def _usage(card: Card, config: Mapping[str, Any]) -> list[str]:
    # A name that is none of the hub's is nowhere to be downloaded from.
    source = card.name if "/" in card.name else "package"
    given = f"float32 mono at {sampling_rate(config)} Hz" if config.get("frontend") else "extracted features (L, F)"
    return [
        "```python",
        "from espnet_ee.decode.recognizer import EarlyExitRecognizer",
        "",
        f'recognizer = EarlyExitRecognizer.from_pretrained("{source}")  # or this folder, or its archive',
        f"result = recognizer.recognize([samples])[0]  # {given}",
        "print(result.text, result.exit_layer, result.macs)",
        "```",
        "",
        "For people without espnet_ee: `python -m espnet_ee.bin.export_stock --asr_train_config config.yaml --asr_model_file model.pth",
        "--exit_layer K --output_dir DIR` (run in this folder) writes one exit as a plain ESPnet model.",
    ]
