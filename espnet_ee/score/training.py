"""What ESPnet's training log tells of every exit: its loss, epoch by epoch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from espnet_ee.score.report import markdown, thinned

ROWS = 8
_EPOCH = re.compile(r" (\d+)epoch results: \[train\] (.*?), \[valid\] (.*)")
_LOSS = re.compile(r"\bloss_exit(\d+)=([^,\s]+)")


@dataclass(frozen=True)
class EpochLosses:
    """CTC loss per utterance, by exit layer, on the training set and on the development set."""

    train: Mapping[int, float]
    valid: Mapping[int, float]


def read_epochs(exp_dir: Path) -> dict[int, EpochLosses]:
    """Reads the epochs from ``train.log`` and, of a training that was resumed, from the logs before it.

    Returns:
        Epoch -> losses, rising; empty when there is no log or the model has no losses by exit.
    """
    logs = [*sorted(exp_dir.glob("train.*.log"), key=lambda path: _number(path.name)), exp_dir / "train.log"]
    found = {}
    for path in logs:
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        for epoch, train, valid in _EPOCH.findall(text):
            losses = EpochLosses(_losses(train), _losses(valid))
            if losses.train:
                found[int(epoch)] = losses
    return dict(sorted(found.items()))


def _number(name: str) -> int:
    middle = name.split(".")[1]
    return int(middle) if middle.isdecimal() else 0


def _losses(text: str) -> dict[int, float]:
    return {int(layer): float(value) for layer, value in _LOSS.findall(text)}


def training_table(epochs: Mapping[int, EpochLosses]) -> list[str]:
    """Lines of a Markdown table with the first, the last and a few epochs between them; none without epochs."""
    if not epochs:
        return []
    layers = sorted(next(iter(epochs.values())).train)
    rows = []
    for number in thinned(list(epochs), ROWS):
        one = epochs[number]
        cells = [f"{one.train.get(layer, float('nan')):.1f} / {one.valid.get(layer, float('nan')):.1f}" for layer in layers]
        rows.append([str(number), *cells])
    return markdown(["epoch", *(f"exit {layer}" for layer in layers)], rows)
