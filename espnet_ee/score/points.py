"""Operating points, the rows of ``exits.csv``: what a way of choosing exits costs on one set, and how well it recognises."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from espnet_ee.errors import UserError
from espnet_ee.files import atomic_write
from espnet_ee.policy.base import ExitPolicy
from espnet_ee.score.bootstrap import interval_text, wer_interval
from espnet_ee.score.outcome import Outcome
from espnet_ee.score.wer import ErrorCounts

_WORDS = ("set", "kind", "name", "policy", "target")
_FLAGS = {"True": True, "False": False}
_LATER = ("loss", "loss_bound")  # an older file lacks these columns
_COUNTS = tuple(field.name for field in fields(ErrorCounts))


@dataclass(frozen=True)
class Point:
    """One operating point on one set.

    Attributes:
        set: the set's name.
        kind: ``fixed`` (every utterance at one exit); ``sweep`` (a policy at any threshold); ``promise`` (a calibrated policy on
            the set it was calibrated on, each utterance judged by a model that has not seen it); ``calibrated`` (replayed);
            ``online`` (as it ran); ``separate`` (another model of this depth); ``oracle``.
        name: what a table calls it; of a policy the name of its decoding configuration.
        words: word errors.
        characters: character errors.
        depth: mean exit layer over the utterances.
        macs_per_second: multiply-accumulates per second of audio.
        wer_low: with ``wer_high`` the interval of the word error rate.
        rtf: seconds of computing per second of audio; measured online, else added up from the run that keeps every exit.
        policy: the policy's name.
        threshold: its threshold.
        target: what it was calibrated for.
        reached: whether it met that on the development set.
        over_fixed: word error rate less that of the line of fixed exits at the same compute, with its interval.
        equals_replay: of an online run, whether every utterance stopped where its replay stops, with the same text and compute.
        loss: of a promise, per cent of errors more than at the last exit, on the same utterances.
        loss_bound: of a promise with a confidence, what it loses at most on other utterances, in per cent.
    """

    set: str
    kind: str
    name: str
    words: ErrorCounts
    characters: ErrorCounts
    depth: float
    macs_per_second: float
    wer_low: float
    wer_high: float
    rtf: float = math.nan
    policy: str = ""
    threshold: float = math.nan
    target: str = ""
    reached: bool | None = None
    over_fixed: float = math.nan
    over_fixed_low: float = math.nan
    over_fixed_high: float = math.nan
    equals_replay: bool | None = None
    loss: float = math.nan
    loss_bound: float = math.nan

    @property
    def wer(self) -> float:
        """Word error rate in per cent."""
        return self.words.rate

    @property
    def wer_text(self) -> str:
        """That and its interval, as the pages show it."""
        return f"{self.wer:.2f} {interval_text(self.wer_low, self.wer_high)}"

    @property
    def cer(self) -> float:
        """Character error rate in per cent."""
        return self.characters.rate


_FIELDS = tuple(field.name for field in fields(Point) if field.name not in ("words", "characters"))
COLUMNS = (
    *_FIELDS[:3],
    "wer",
    "cer",
    *_FIELDS[3:],
    *(f"{unit}_{count}" for unit in ("word", "character") for count in _COUNTS),
)


def make_point(set_name: str, kind: str, name: str, outcome: Outcome, drawn: np.ndarray, **labels: Any) -> Point:
    """The operating point of an outcome, with its interval by the resamples of the set's utterances.

    ``labels`` are the other fields of a :class:`Point`; ``rtf`` is the outcome's by default.
    """
    low, high = wer_interval(drawn, outcome)
    costs = (outcome.depth, outcome.macs_per_second)
    return Point(set_name, kind, name, *outcome.counts(), *costs, low, high, **{"rtf": outcome.rtf, **labels})


def policy_labels(policy: ExitPolicy) -> dict[str, Any]:
    """The fields of a point that tell its policy."""
    return {"policy": policy.name, "threshold": getattr(policy, "threshold", math.nan)}


def describe_policy(policy: ExitPolicy) -> str:
    """Name and settings in one line; a fitted model's numbers stay in its file."""
    settings = [f"{key}={value}" for key, value in asdict(policy).items() if not isinstance(value, Mapping)]  # type: ignore[call-overload]
    return " ".join([policy.name, *settings])


def write_exits(path: Path, points: Sequence[Point]) -> None:
    """Writes ``exits.csv``: one row for each operating point, rates in per cent, counts as they are; empty: not known."""
    with atomic_write(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for point in points:
            row = [getattr(point, name) for name in (*_FIELDS[:3], "wer", "cer", *_FIELDS[3:])]
            row += [getattr(counts, name) for counts in (point.words, point.characters) for name in _COUNTS]
            writer.writerow(["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in row])


def read_exits(path: str | Path) -> list[Point]:
    """Reads ``exits.csv``.

    Raises:
        UserError: the file is missing or not an ``exits.csv`` of this version.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; score the experiment first") from None
    except (UnicodeDecodeError, csv.Error):
        raise UserError(f"{path}: not a table in UTF-8; score the experiment again") from None
    points = []
    for number, row in enumerate(rows, 2):
        try:
            points.append(_point(row))
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path}:{number}: not a row of exits.csv ({error}); score the experiment again") from None
    return points


def _point(row: Mapping[str, str]) -> Point:
    values: dict[str, Any] = {
        name: float((row.get(name) if name in _LATER else row[name]) or "nan")
        for name in _FIELDS
        if name not in (*_WORDS, "reached", "equals_replay")
    }
    values |= {name: row[name] for name in _WORDS}
    values |= {name: _FLAGS.get(row[name]) for name in ("reached", "equals_replay")}
    words, characters = (ErrorCounts(*(int(row[f"{unit}_{name}"]) for name in _COUNTS)) for unit in ("word", "character"))
    return Point(**values, words=words, characters=characters)
