"""A set as arrays of utterances and exits: thousands of thresholds are replayed in seconds."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from espnet_ee.errors import UserError
from espnet_ee.kaldi import read_scp
from espnet_ee.policy.base import ExitPolicy, ThresholdPolicy, choose_exit
from espnet_ee.policy.table import EvidenceTable, read_table
from espnet_ee.score.imported import is_imported, read_imported
from espnet_ee.score.kept import FAILED, Edits, Seconds, mark_of, read_edits, read_failed, read_timing, write_edits
from espnet_ee.score.outcome import Outcome
from espnet_ee.score.wer import check_same_utterances, count_edits


@dataclass(frozen=True)
class Grid:
    """One set with every exit's errors and costs.

    Attributes:
        name: the set's name.
        table: its evidence.
        utterances: ids, in the order of the rows below.
        layers: exit layers (K,).
        words: hits, substitutions, deletions and insertions of words, of every exit (N, K, 4).
        characters: likewise of characters (N, K, 4).
        seconds: audio (N,).
        macs_alone: compute when only the head of the exit itself is read (N, K).
        macs_passed: compute when the heads below are read, too (N, K).
        macs_searched: compute when the attention decoders below search, too (N, K); without decoders as ``macs_passed``.
        clock: measured seconds to the text of every exit (N, K); None when no timing was kept.
        failed: utterances of the set that are in no row, for they could not be decoded, and why.
        references: text by utterance, of these and perhaps others.
    """

    name: str
    table: EvidenceTable
    utterances: tuple[str, ...]
    layers: np.ndarray
    words: np.ndarray
    characters: np.ndarray
    seconds: np.ndarray
    macs_alone: np.ndarray
    macs_passed: np.ndarray
    macs_searched: np.ndarray
    clock: np.ndarray | None = None
    failed: Mapping[str, str] = field(default_factory=dict)
    references: Mapping[str, str] = field(default_factory=dict)

    def without(self, failed: Mapping[str, str]) -> Grid:
        """The same set with fewer utterances, whatever of it these ids belong to."""
        stay = np.array([utt not in failed for utt in self.utterances], dtype=bool)
        if not stay.any():
            raise UserError(f"set {self.name}: no utterance was decoded by every run; see the files {FAILED} of its decodings")
        return replace(self.part(stay), failed={**self.failed, **failed})

    def part(self, selection: np.ndarray) -> Grid:
        """The same set with some utterances alone, by number or by a mask (N,)."""
        names = tuple(np.array(self.utterances)[selection].tolist())
        arrays = ("words", "characters", "seconds", "macs_alone", "macs_passed", "macs_searched")
        return replace(
            self,
            table=EvidenceTable(self.table.exit_layers, {utt: self.table.utterances[utt] for utt in names}),
            utterances=names,
            clock=None if self.clock is None else self.clock[selection],
            **{name: getattr(self, name)[selection] for name in arrays},
        )

    @cached_property
    def errors(self) -> np.ndarray:
        """Word errors of every exit (N, K)."""
        return self.words[:, :, 1:].sum(axis=2).astype(float)

    @property
    def lengths(self) -> np.ndarray:
        """Words of the references (N,)."""
        return self.words[:, 0, :3].sum(axis=1)


def make_grid(
    name: str,
    table: EvidenceTable,
    references: Mapping[str, str],
    timing: Seconds | None = None,
    edits: Edits | None = None,
) -> Grid:
    """Counts the errors of every exit.

    Args:
        name: of the set.
        table: its evidence.
        references: text by utterance id.
        timing: by utterance the seconds to every exit.
        edits: the counts, utterances sorted, where they are known already.

    Raises:
        UserError: table and references do not hold the same utterances, or no reference has a word.
    """
    check_same_utterances(references, table.utterances, f"set {name}")
    if timing is not None:
        check_same_utterances(table.utterances, timing, f"timing of set {name}")
    names = tuple(sorted(table.utterances))
    rows = [table.utterances[utt].rows for utt in names]
    words, characters = edits if edits is not None else _align(table, names, references)
    if not words[:, 0, :3].sum():
        raise UserError(f"set {name}: no reference has a word, so there is no error rate; see its text file")
    encoder = np.array([[row.encoder_macs for row in exits] for exits in rows], dtype=float)
    heads = np.array([[row.head_macs for row in exits] for exits in rows], dtype=float)
    decoders = np.array([[row.decoder_macs for row in exits] for exits in rows], dtype=float)
    passed = encoder + heads.cumsum(axis=1)
    return Grid(
        name=name,
        table=table,
        utterances=names,
        layers=np.array(table.exit_layers),
        words=words,
        characters=characters,
        seconds=np.array([table.utterances[utt].audio_seconds for utt in names]),
        macs_alone=encoder + heads + decoders,
        macs_passed=passed + decoders,
        macs_searched=passed + decoders.cumsum(axis=1),
        clock=None if timing is None else np.array([timing[utt] for utt in names]),
        references=references,
    )


def _align(table: EvidenceTable, names: Sequence[str], references: Mapping[str, str]) -> Edits:
    pairs = [(references[utt], row.hypothesis) for utt in names for row in table.utterances[utt].rows]
    shape = (len(names), len(table.exit_layers), 4)
    return count_edits(pairs, "word").reshape(shape), count_edits(pairs, "character").reshape(shape)


def read_grid(evidence: Path, text: Path | None, name: str = "", keep: bool = False) -> Grid:
    """Reads an evidence table with its references, or a table of the import format, which holds them.

    Args:
        evidence: the table; ``timing.tsv`` and ``errors.tsv`` beside it are read, too.
        text: the references.
        name: of the set; its folder's by default.
        keep: writes ``errors.tsv`` beside the table unless it is there: a later stage need not align again.

    Raises:
        UserError: a file is missing or broken, or our own table comes without its references.
    """
    if is_imported(evidence):
        return make_grid(name or evidence.stem, *read_imported(evidence))
    if text is None:
        raise UserError(f"{evidence}: the table holds no references; give the set's text file, too")
    table, clock, counts = read_table(evidence), evidence.with_name("timing.tsv"), evidence.with_name("errors.tsv")
    failed = read_failed(evidence.parent)
    references = without(read_scp(text, allow_empty=True), failed)
    timing = read_timing(clock, table.exit_layers) if clock.exists() else None
    mark = mark_of(evidence, text)
    edits = read_edits(counts, mark, table)
    grid = make_grid(name or evidence.parent.name, table, references, timing, edits)
    if keep and edits is None:
        write_edits(counts, mark, table, (grid.words, grid.characters))
    if failed:
        count = f"{len(failed)} of {len(failed) + len(grid.utterances)} utterances"
        print(f"warning: {evidence}: {count} could not be decoded and are in no number", file=sys.stderr)
    return replace(grid, failed=failed)


def without(table: Mapping[str, str], failed: Collection[str]) -> dict[str, str]:
    """A table without the utterances that could not be decoded."""
    return {utt: value for utt, value in table.items() if utt not in failed}


def levels(grid: Grid, policy: ThresholdPolicy) -> np.ndarray:
    """The numbers the policy compares with its threshold (N, K); they do not depend on the threshold."""
    policy.check(grid.table.exit_layers)
    level = np.full(grid.errors.shape, np.nan)
    for row, utt in enumerate(grid.utterances):
        evidence = grid.table.utterances[utt].evidence
        # The last exit always stops: its level decides nothing.
        for index in range(len(evidence) - 1):
            level[row, index] = policy.level(evidence[: index + 1])
    if not np.isfinite(level).any() and _says_something(grid):
        remedy = "decode every exit again (posterior: with --nbest N; of a decoder: with --search kind=attention)"
        raise UserError(f"policy {policy.name}: the evidence table of set {grid.name} lacks what it reads; {remedy}")
    return level


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
    policy.check(grid.table.exit_layers)
    return np.array([choose_exit(policy, grid.table.utterances[utt].evidence) for utt in grid.utterances])


def oracle_exits(grid: Grid) -> np.ndarray:
    """Index of the exit with the fewest word errors, the first of equals (N,): the bound that no policy can pass."""
    return grid.errors.argmin(axis=1)


def outcome(grid: Grid, exits: np.ndarray, needs_every_exit: bool, needs_every_search: bool = False) -> Outcome:
    """What stopping at these exits (N,) gives."""
    rows = np.arange(len(exits))
    macs = grid.macs_passed if needs_every_exit else grid.macs_alone
    macs = grid.macs_searched if needs_every_search else macs
    clock = None if grid.clock is None else grid.clock[rows, exits]
    words, characters = grid.words[rows, exits], grid.characters[rows, exits]
    return Outcome(words, characters, macs[rows, exits], grid.layers[exits], grid.seconds, clock)


def policy_outcome(grid: Grid, exits: np.ndarray, policy: ExitPolicy) -> Outcome:
    """What a policy gives that stops at these exits (N,): what it reads at the exits below counts."""
    return outcome(grid, exits, policy.needs_every_exit, policy.needs_every_search)


def fixed_outcomes(grid: Grid) -> list[Outcome]:
    """Every utterance at the same exit, for each exit; only its head is read."""
    full = np.zeros(len(grid.utterances), dtype=int)
    return [outcome(grid, full + index, needs_every_exit=False) for index in range(len(grid.layers))]


def candidate_thresholds(policy: ThresholdPolicy, level: np.ndarray, count: int = 200) -> list[float]:
    """Thresholds worth trying, the shallowest first: between the levels, and beyond them at both ends.

    Args:
        policy: says in which direction the threshold works.
        level: from :func:`levels`, of a development set.
        count: at most so many between the levels, which are thinned to quantiles; the two beyond come on top.
    """
    values = np.unique(level[:, :-1][np.isfinite(level[:, :-1])])
    if not len(values):  # nothing to go by: nobody stops early
        return [policy.least if deeper_is_lower(policy) else policy.most]
    # Of counts (patience) the numbers themselves; of measurements the middles, which noise moves least.
    middle = values if (values == values.round()).all() else (values[1:] + values[:-1]) / 2
    if len(middle) > count:
        middle = np.quantile(middle, np.linspace(0, 1, count), method="nearest")
    beyond = (max(policy.least, np.floor(values[0]) - 1), min(policy.most, np.ceil(values[-1]) + 1))
    rising = sorted({*map(float, beyond), *(float(f"{value:.6g}") for value in middle)})
    return rising if not deeper_is_lower(policy) else rising[::-1]


def deeper_is_lower(policy: ThresholdPolicy) -> bool:
    """Whether a lower threshold sends utterances deeper."""
    return bool(type(policy).compare(0.0, 1.0))


def sweep(grid: Grid, policy: ThresholdPolicy, thresholds: Sequence[float]) -> list[Outcome]:
    """The outcome at every threshold; the levels are computed once."""
    level = levels(grid, policy)
    return [policy_outcome(grid, exits_at(policy, level, value), policy) for value in thresholds]
