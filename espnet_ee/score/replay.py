"""Replays policies over an evidence table: any policy and threshold is judged in seconds, nothing is decoded again."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from espnet_ee.errors import UserError
from espnet_ee.policy.base import ExitPolicy, choose_exit
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.policy.table import EvidenceTable, macs_of_stop
from espnet_ee.score.wer import ErrorCounts, add_counts, check_same_utterances, count_errors

Seconds = Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class ScoredSet:
    """One set, decoded with all exits kept and aligned with its references.

    Attributes:
        name: the set's name.
        table: its evidence.
        words: for each utterance the word errors of every exit.
        characters: likewise the character errors.
        seconds: for each utterance the wall clock to the text of every exit; ``None`` when no timing was kept.
    """

    name: str
    table: EvidenceTable
    words: Mapping[str, tuple[ErrorCounts, ...]]
    characters: Mapping[str, tuple[ErrorCounts, ...]]
    seconds: Seconds | None = None

    @property
    def audio_seconds(self) -> float:
        """Seconds of audio in the set."""
        return math.fsum(utterance.audio_seconds for utterance in self.table.utterances.values())


@dataclass(frozen=True)
class OperatingPoint:
    """What a way of choosing exits costs and how well it recognises, on one set.

    Attributes:
        set: the set's name.
        kind: ``fixed``, ``sweep`` (replayed thresholds), ``online``, ``oracle`` or ``separate`` (a model of its own).
        name: what a table calls it.
        threshold: the policy's threshold if it has one.
        words: word errors.
        characters: character errors.
        depth: mean exit layer over the utterances.
        macs_per_second: multiply-accumulates per second of audio.
        rtf: seconds of computing per second of audio, ``None`` if not measured.
        rtf_replayed: whether ``rtf`` adds up the all-exits run's times at the chosen exits, or was measured online.
    """

    set: str
    kind: str
    name: str
    threshold: float | None
    words: ErrorCounts
    characters: ErrorCounts
    depth: float
    macs_per_second: float
    rtf: float | None = None
    rtf_replayed: bool = True

    @property
    def wer(self) -> float:
        """Word error rate in per cent."""
        return self.words.rate


def score_set(name: str, table: EvidenceTable, references: Mapping[str, str], seconds: Seconds | None = None) -> ScoredSet:
    """Aligns the texts of all exits with the references, once.

    Raises:
        UserError: table, timing and references do not hold the same utterances.
    """
    check_same_utterances(references, table.utterances, f"set {name}")
    if seconds is not None:
        check_same_utterances(table.utterances, seconds, f"timing of set {name}")
    words, characters = [], []
    for index in range(len(table.exit_layers)):
        hypotheses = {utt: utterance.rows[index].hypothesis for utt, utterance in table.utterances.items()}
        words.append(count_errors(references, hypotheses, "word"))
        characters.append(count_errors(references, hypotheses, "character"))
    by_utterance = [{utt: tuple(exit_[utt] for exit_ in counts) for utt in references} for counts in (words, characters)]
    return ScoredSet(name, table, *by_utterance, seconds=seconds)


def choose_exits(table: EvidenceTable, policy: ExitPolicy) -> dict[str, int]:
    """Returns for each utterance the index of the exit at which the policy stops.

    Raises:
        UserError: the policy does not fit the table's exits, or needs an N-best, which the table lacks.
    """
    policy.check(table.exit_layers)
    if policy.nbest and not all(row.evidence.nbest_scores for utterance in table.utterances.values() for row in utterance.rows):
        raise UserError(
            f"policy {policy.name}: needs N-best scores, which the evidence table lacks; decode all exits with --nbest"
        )
    return {utt: choose_exit(policy, utterance.evidence) for utt, utterance in table.utterances.items()}


def operating_point(
    scored: ScoredSet,
    kind: str,
    name: str,
    choices: Mapping[str, int],
    *,
    needs_every_exit: bool,
    threshold: float | None = None,
) -> OperatingPoint:
    """Adds up errors, layers, compute and time of the chosen exits.

    Args:
        scored: the set.
        kind: see :class:`OperatingPoint`.
        name: see :class:`OperatingPoint`.
        choices: index of the exit for each utterance.
        needs_every_exit: whether the heads below the chosen exit count as compute.
        threshold: the policy's threshold if it has one.
    """
    utterances = scored.table.utterances
    macs = sum(macs_of_stop(utterances[utt].rows, index, needs_every_exit) for utt, index in choices.items())
    layers = [scored.table.exit_layers[index] for index in choices.values()]
    rtf = None
    if scored.seconds is not None:
        rtf = math.fsum(scored.seconds[utt][index] for utt, index in choices.items()) / scored.audio_seconds
    return OperatingPoint(
        set=scored.name,
        kind=kind,
        name=name,
        threshold=threshold,
        words=add_counts(scored.words[utt][index] for utt, index in choices.items()),
        characters=add_counts(scored.characters[utt][index] for utt, index in choices.items()),
        depth=sum(layers) / len(layers),
        macs_per_second=macs / scored.audio_seconds,
        rtf=rtf,
    )


def replay_policy(scored: ScoredSet, policy: ExitPolicy, kind: str, name: str) -> OperatingPoint:
    """Returns the operating point of a policy on a set."""
    return operating_point(
        scored,
        kind,
        name,
        choose_exits(scored.table, policy),
        needs_every_exit=policy.needs_every_exit,
        threshold=getattr(policy, "threshold", None),
    )


def fixed_points(scored: ScoredSet) -> list[OperatingPoint]:
    """Returns one point for every exit, at which all utterances stop; only that exit's head is computed."""
    return [replay_policy(scored, FixedExitPolicy(layer), "fixed", f"exit {layer}") for layer in scored.table.exit_layers]


def entropy_thresholds(development: EvidenceTable, count: int = 15) -> list[float]:
    """Returns thresholds at evenly spaced quantiles of a development set's entropies.

    Only the development set is looked at, so that the points on a test set are chosen without it. The final exit is
    left out: its entropy never decides anything. Rounded to four digits, so that a point's name is its very threshold.

    Args:
        development: evidence of the development set.
        count: how many quantiles; equal ones are given once.
    """
    values = [
        row.evidence.entropy
        for utterance in development.utterances.values()
        for row in utterance.rows[:-1]
        if math.isfinite(row.evidence.entropy)
    ]
    quantiles = statistics.quantiles(values, n=count + 1, method="inclusive") if len(values) > 1 else values
    return sorted({float(f"{value:.4g}") for value in quantiles})


def entropy_sweep(scored: ScoredSet, thresholds: Sequence[float]) -> list[OperatingPoint]:
    """Returns the operating point of the entropy policy at every threshold."""
    return [replay_policy(scored, EntropyPolicy(value), "sweep", f"entropy {value:g}") for value in thresholds]


def oracle_points(scored: ScoredSet) -> list[OperatingPoint]:
    """Returns what choosing by the reference would reach: the bounds no policy can pass.

    *Not worse*: the first exit with no more word errors than the last exit has. *Best*: the exit with the fewest word
    errors, the earliest of equals. An oracle needs no evidence, so only the chosen exit's head counts as compute.
    """
    errors = {utt: [counts.errors for counts in exits] for utt, exits in scored.words.items()}
    not_worse = {utt: next(i for i, count in enumerate(counts) if count <= counts[-1]) for utt, counts in errors.items()}
    best = {utt: counts.index(min(counts)) for utt, counts in errors.items()}
    return [
        operating_point(scored, "oracle", "oracle: not worse than the last exit", not_worse, needs_every_exit=False),
        operating_point(scored, "oracle", "oracle: best exit", best, needs_every_exit=False),
    ]
