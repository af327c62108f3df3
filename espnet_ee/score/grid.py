"""A set as arrays of utterances and exits: thousands of thresholds are replayed in seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_ee.errors import UserError
from espnet_ee.kaldi import read_scp
from espnet_ee.policy.base import ExitPolicy, ThresholdPolicy
from espnet_ee.policy.table import EvidenceTable, read_table
from espnet_ee.score.imported import is_imported, read_imported
from espnet_ee.score.replay import Seconds, choose_exits
from espnet_ee.score.runs import read_timing
from espnet_ee.score.wer import check_same_utterances, count_errors


@dataclass(frozen=True)
class Grid:
    """One set with every exit's errors and costs.

    Attributes:
        name: the set's name.
        table: its evidence.
        utterances: ids, in the order of the rows below.
        layers: exit layers (K,).
        errors: word errors of every exit (N, K).
        words: words of the reference (N,).
        seconds: audio (N,).
        macs_alone: compute when only the chosen exit's head is read (N, K).
        macs_passed: compute when the heads below are read, too (N, K).
        clock: measured seconds to the text of every exit (N, K); None when no timing was kept.
    """

    name: str
    table: EvidenceTable
    utterances: tuple[str, ...]
    layers: np.ndarray
    errors: np.ndarray
    words: np.ndarray
    seconds: np.ndarray
    macs_alone: np.ndarray
    macs_passed: np.ndarray
    clock: np.ndarray | None = None

    def rows(self, chosen: np.ndarray) -> Grid:
        """The set of some utterances alone, by number or by a mask (N,)."""
        names = tuple(np.array(self.utterances)[chosen].tolist())
        return Grid(
            name=self.name,
            table=EvidenceTable(self.table.exit_layers, {name: self.table.utterances[name] for name in names}),
            utterances=names,
            layers=self.layers,
            errors=self.errors[chosen],
            words=self.words[chosen],
            seconds=self.seconds[chosen],
            macs_alone=self.macs_alone[chosen],
            macs_passed=self.macs_passed[chosen],
            clock=None if self.clock is None else self.clock[chosen],
        )


@dataclass(frozen=True)
class Outcome:
    """What stopping somewhere gave, utterance by utterance; of a mixture of two ways, their mean.

    Attributes:
        errors: word errors (N,).
        words: words of the reference (N,).
        macs: multiply-accumulates (N,).
        layers: exit layer (N,).
        seconds: audio (N,).
        clock: measured seconds of computing (N,), None when not measured.
    """

    errors: np.ndarray
    words: np.ndarray
    macs: np.ndarray
    layers: np.ndarray
    seconds: np.ndarray
    clock: np.ndarray | None = None

    @property
    def wer(self) -> float:
        """Word error rate in per cent."""
        return 100 * float(self.errors.sum()) / max(1, int(self.words.sum()))

    @property
    def depth(self) -> float:
        """Mean exit layer."""
        return float(self.layers.mean())

    @property
    def macs_per_second(self) -> float:
        """Compute per second of audio."""
        return float(self.macs.sum() / self.seconds.sum())

    @property
    def rtf(self) -> float:
        """Measured seconds of computing per second of audio; NaN when not measured."""
        return math.nan if self.clock is None else float(self.clock.sum() / self.seconds.sum())

    def mixed(self, other: Outcome, share: float) -> Outcome:
        """The expectation when a share of the utterances, drawn by chance, goes the other way."""
        pairs = ((self.errors, other.errors), (self.macs, other.macs), (self.layers, other.layers))
        errors, macs, layers = ((1 - share) * one + share * two for one, two in pairs)
        clock = None if self.clock is None or other.clock is None else (1 - share) * self.clock + share * other.clock
        return Outcome(errors, self.words, macs, layers, self.seconds, clock)


def make_grid(name: str, table: EvidenceTable, references: Mapping[str, str], timing: Seconds | None = None) -> Grid:
    """Counts the word errors of every exit.

    Raises:
        UserError: table and references do not hold the same utterances, or no reference has a word.
    """
    check_same_utterances(references, table.utterances, f"set {name}")
    if not any(references[utt].split() for utt in table.utterances):
        raise UserError(f"set {name}: no reference has a word, so there is no error rate; see its text file")
    names = tuple(sorted(table.utterances))
    rows = [table.utterances[utt].rows for utt in names]
    wanted = {utt: references[utt] for utt in names}
    columns = []
    for index in range(len(table.exit_layers)):
        hypotheses = {utt: exits[index].hypothesis for utt, exits in zip(names, rows, strict=True)}
        columns.append(count_errors(wanted, hypotheses, "word"))
    encoder = np.array([[row.encoder_macs for row in exits] for exits in rows], dtype=float)
    heads = np.array([[row.head_macs for row in exits] for exits in rows], dtype=float)
    return Grid(
        name=name,
        table=table,
        utterances=names,
        layers=np.array(table.exit_layers),
        errors=np.array([[column[utt].errors for column in columns] for utt in names], dtype=float),
        words=np.array([columns[0][utt].tokens for utt in names]),
        seconds=np.array([table.utterances[utt].audio_seconds for utt in names]),
        macs_alone=encoder + heads,
        macs_passed=encoder + heads.cumsum(axis=1),
        clock=None if timing is None else np.array([timing[utt] for utt in names]),
    )


def read_grid(evidence: Path, text: Path | None, name: str = "") -> Grid:
    """Reads an evidence table with its references, or a table of the import format, which holds them.

    Raises:
        UserError: a file is missing or broken, or our own table comes without its references.
    """
    if is_imported(evidence):
        return make_grid(name or evidence.stem, *read_imported(evidence))
    if text is None:
        raise UserError(f"{evidence}: the table holds no references; give the set's text file, too")
    table, clock = read_table(evidence), evidence.with_name("timing.tsv")
    timing = read_timing(clock, table.exit_layers) if clock.exists() else None
    if timing is not None:
        check_same_utterances(table.utterances, timing, str(clock))
    return make_grid(name or evidence.parent.name, table, read_scp(text, allow_empty=True), timing)


def levels(grid: Grid, policy: ThresholdPolicy) -> np.ndarray:
    """The numbers the policy compares with its threshold (N, K); they do not depend on the threshold."""
    policy.check(grid.table.exit_layers)
    found = np.full(grid.errors.shape, np.nan)
    for row, utt in enumerate(grid.utterances):
        evidence = grid.table.utterances[utt].evidence
        # The last exit always stops: its level decides nothing.
        for index in range(len(evidence) - 1):
            found[row, index] = policy.level(evidence[: index + 1])
    if not np.isfinite(found).any() and _says_something(grid):
        remedy = "decode with --all_exits true --nbest N" if policy.nbest else "decode with --all_exits true again"
        raise UserError(f"policy {policy.name}: the evidence table of set {grid.name} lacks what it reads; {remedy}")
    return found


def _says_something(grid: Grid) -> bool:
    """Whether an exit below the last speaks a token; where all are silent, there may rightly be nothing to go by."""
    return any(exit_.tokens for utterance in grid.table.utterances.values() for exit_ in utterance.evidence[:-1])


def exits_at(policy: ThresholdPolicy, level: np.ndarray, threshold: float) -> np.ndarray:
    """Index of the exit at which each utterance stops (N,), as :func:`espnet_ee.policy.base.choose_exit` would say."""
    stops = np.isfinite(level) & type(policy).compare(level, threshold)
    stops[:, -1] = True
    return stops.argmax(axis=1)


def exits_of(grid: Grid, policy: ExitPolicy) -> np.ndarray:
    """Index of the exit at which each utterance stops (N,) under any policy."""
    if isinstance(policy, ThresholdPolicy):
        return exits_at(policy, levels(grid, policy), policy.threshold)
    choices = choose_exits(grid.table, policy)
    return np.array([choices[utt] for utt in grid.utterances])


def outcome(grid: Grid, exits: np.ndarray, needs_every_exit: bool) -> Outcome:
    """What stopping at these exits (N,) gives."""
    rows = np.arange(len(exits))
    macs = grid.macs_passed if needs_every_exit else grid.macs_alone
    clock = None if grid.clock is None else grid.clock[rows, exits]
    return Outcome(grid.errors[rows, exits], grid.words, macs[rows, exits], grid.layers[exits], grid.seconds, clock)


def fixed_outcomes(grid: Grid, needs_every_exit: bool = False) -> list[Outcome]:
    """Every utterance at the same exit, for each exit; unless every exit is needed, only its head is read."""
    full = np.zeros(len(grid.words), dtype=int)
    return [outcome(grid, full + index, needs_every_exit) for index in range(len(grid.layers))]


def candidate_thresholds(policy: ThresholdPolicy, level: np.ndarray, count: int = 200) -> list[float]:
    """Thresholds worth trying, the shallowest first: between the levels, and beyond them at both ends.

    Args:
        policy: says in which direction the threshold works.
        level: from :func:`levels`, of a development set.
        count: at most so many between the levels, which are thinned to quantiles; the two beyond come on top.
    """
    values = np.unique(level[:, :-1][np.isfinite(level[:, :-1])])
    if not len(values):  # nothing to go by: nobody stops early
        return [policy.least if deeper_is_lower(policy) else np.inf]
    # Of counts (patience) the numbers themselves; of measurements the middles, which noise moves least.
    middle = values if (values == values.round()).all() else (values[1:] + values[:-1]) / 2
    if len(middle) > count:
        middle = np.quantile(middle, np.linspace(0, 1, count), method="nearest")
    beyond = (max(policy.least, np.floor(values[0]) - 1), np.ceil(values[-1]) + 1)
    tried = sorted({*map(float, beyond), *(float(f"{value:.6g}") for value in middle)})
    return tried if not deeper_is_lower(policy) else tried[::-1]


def deeper_is_lower(policy: ThresholdPolicy) -> bool:
    """Whether a lower threshold sends utterances deeper."""
    return bool(type(policy).compare(0.0, 1.0))


def sweep(grid: Grid, policy: ThresholdPolicy, thresholds: Sequence[float]) -> list[Outcome]:
    """The outcome at every threshold; the levels are computed once."""
    level = levels(grid, policy)
    return [outcome(grid, exits_at(policy, level, value), policy.needs_every_exit) for value in thresholds]
