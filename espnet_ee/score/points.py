"""Operating points, the rows of ``exits.csv``: what a way of choosing exits costs on one set, and how well it recognises."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from espnet_ee.errors import UserError
from espnet_ee.files import atomic_write
from espnet_ee.policy.base import ExitPolicy
from espnet_ee.score.bootstrap import Difference, Interval, wer_interval
from espnet_ee.score.outcome import Outcome
from espnet_ee.score.wer import ErrorCounts

KINDS = ("fixed", "sweep", "promise", "calibrated", "online", "separate", "oracle")
_COUNTS = tuple(field.name for field in fields(ErrorCounts))
_HEAD = ("set", "kind", "name", "policy", "threshold", "target", "reached", "wer", "wer_low", "wer_high", "cer", "depth")
_TAIL = ("macs_per_second", "rtf", "over_fixed", "over_fixed_low", "over_fixed_high", "equals_replay")
COLUMNS = (*_HEAD, *_TAIL, *(f"word_{name}" for name in _COUNTS), *(f"character_{name}" for name in _COUNTS))


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
        wer_interval: of the word error rate.
        depth: mean exit layer over the utterances.
        macs_per_second: multiply-accumulates per second of audio.
        rtf: seconds of computing per second of audio; measured online, else added up from the run that keeps every exit.
        policy: the policy's name.
        threshold: its threshold.
        target: what it was calibrated for.
        reached: whether it met that on the development set.
        over_fixed: word error rate less that of the line of fixed exits at the same compute.
        equals_replay: of an online run, whether every utterance stopped where its replay stops, with the same text and compute.
    """

    set: str
    kind: str
    name: str
    words: ErrorCounts
    characters: ErrorCounts
    wer_interval: Interval
    depth: float
    macs_per_second: float
    rtf: float | None = None
    policy: str = ""
    threshold: float | None = None
    target: str = ""
    reached: bool | None = None
    over_fixed: Difference | None = None
    equals_replay: bool | None = None

    @property
    def wer(self) -> float:
        """Word error rate in per cent."""
        return self.words.rate


def make_point(set_name: str, kind: str, name: str, outcome: Outcome, drawn: np.ndarray, **more: Any) -> Point:
    """The operating point of an outcome, with its interval.

    Args:
        set_name: the set.
        kind: see :class:`Point`.
        name: see :class:`Point`.
        outcome: what was reached.
        drawn: the resamples of the set's utterances.
        more: the other fields; ``rtf`` is the outcome's by default.
    """
    return Point(
        set=set_name,
        kind=kind,
        name=name,
        words=outcome.counts()[0],
        characters=outcome.counts()[1],
        wer_interval=wer_interval(drawn, outcome),
        depth=outcome.depth,
        macs_per_second=outcome.macs_per_second,
        **{"rtf": None if np.isnan(outcome.rtf) else outcome.rtf, **more},
    )


def describe_policy(policy: ExitPolicy) -> str:
    """Name and settings in one line; a fitted model's numbers stay in its file."""
    settings = [f"{key}={value}" for key, value in asdict(policy).items() if not isinstance(value, Mapping)]
    return " ".join([policy.name, *settings])


def write_exits(path: Path, points: Sequence[Point]) -> None:
    """Writes ``exits.csv``: one row for each operating point, rates in per cent, counts as they are."""
    with atomic_write(path) as stream:
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: value for key, value in _row(point).items() if value is not None} for point in points)


def _row(point: Point) -> dict[str, Any]:
    plain = {name: getattr(point, name) for name in COLUMNS if hasattr(point, name) and name != "over_fixed"}
    over, interval = point.over_fixed, point.wer_interval
    row = {**plain, "wer_low": interval.low, "wer_high": interval.high, "cer": point.characters.rate}
    if over:
        row |= {"over_fixed": over.points, "over_fixed_low": over.low, "over_fixed_high": over.high}
    for unit, counts in (("word", point.words), ("character", point.characters)):
        row |= {f"{unit}_{name}": getattr(counts, name) for name in _COUNTS}
    return row


def read_exits(path: str | Path) -> list[Point]:
    """Reads ``exits.csv``.

    Raises:
        UserError: the file is missing or not an ``exits.csv`` of this version.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; score the experiment first") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; score the experiment again") from None
    points = []
    for number, row in enumerate(rows, 2):
        try:
            points.append(_point(row))
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(f"{path}:{number}: not a row of exits.csv ({error}); score the experiment again") from None
    return points


def _point(row: Mapping[str, str]) -> Point:
    words, characters = (ErrorCounts(*(int(row[f"{unit}_{name}"]) for name in _COUNTS)) for unit in ("word", "character"))
    low, high, over = (float(row[name] or "nan") for name in ("over_fixed_low", "over_fixed_high", "over_fixed"))
    return Point(
        **{name: row[name] for name in ("set", "kind", "name", "policy", "target")},
        **{name: float(row[name]) for name in ("depth", "macs_per_second")},
        **{name: float(row[name]) if row[name] else None for name in ("threshold", "rtf")},
        **{name: {"True": True, "False": False}.get(row[name]) for name in ("reached", "equals_replay")},
        words=words,
        characters=characters,
        wer_interval=Interval(float(row["wer_low"]), float(row["wer_high"])),
        over_fixed=Difference(low, high, over) if row["over_fixed"] else None,
    )
