"""Measures one set: fixed exits, calibrated policies replayed and online, the oracle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from espnet_ee.policy.base import ExitPolicy, ThresholdPolicy
from espnet_ee.policy.confidences import ConfidenceMap
from espnet_ee.score.bootstrap import difference, draws
from espnet_ee.score.confidences import Reliability, reliabilities
from espnet_ee.score.grid import (
    Grid,
    candidate_thresholds,
    exits_of,
    fixed_outcomes,
    levels,
    oracle_exits,
    outcome,
    policy_outcome,
    sweep,
)
from espnet_ee.score.outcome import Outcome, at_cost
from espnet_ee.score.points import Point, make_point, policy_labels
from espnet_ee.score.runs import OnlineRun

MAX_HURT = 5
SWEEP_POINTS = 60  # more than a curve shows


class Hurt(NamedTuple):
    """An utterance that loses words by stopping early."""

    utterance: str
    exit_layer: int
    errors: int
    errors_at_last: int
    text: str
    text_of_last: str


@dataclass(frozen=True)
class SetResult:
    """All that is told of one set.

    Attributes:
        name: the set's name.
        utterances: how many.
        failed: utterances that could not be decoded, which are in no number, and why.
        invisible: invisible characters of its references, which are not scored.
        points: its operating points.
        checks: a line for every online run: does it equal its replay?
        stops: by calibrated policy, how many utterances stop at every exit.
        hurt: utterances that stopping early hurts most.
        hurt_by: the policy that hurts them.
        exits: by calibrated policy, index of the exit where every utterance stops (N,).
        sweep_stops: for every point of a sweep, in their order, how many utterances stop at every exit.
        confidences: what the word confidences of every exit are worth; none where the evidence does not hold them.
    """

    name: str
    utterances: int
    failed: Mapping[str, str]
    invisible: int
    points: Sequence[Point]
    checks: Sequence[str]
    stops: Mapping[str, Sequence[int]]
    hurt: Sequence[Hurt]
    hurt_by: str
    exits: Mapping[str, np.ndarray]
    sweep_stops: Sequence[Sequence[int]]
    confidences: Sequence[Reliability]


@dataclass(frozen=True)
class Policies:
    """The calibrated policies of an experiment.

    Attributes:
        by_name: the policy of every decoding configuration.
        promises: by name, what the development set promised.
        sweeps: one policy of each kind, and the thresholds that its sweep tries.
        confidences: what the model's word confidences were worth on the development set.
    """

    by_name: Mapping[str, ExitPolicy]
    promises: Mapping[str, Point]
    sweeps: Sequence[tuple[ThresholdPolicy, Sequence[float]]]
    confidences: ConfidenceMap = field(default_factory=ConfidenceMap)


def make_policies(
    dev: Grid, by_name: Mapping[str, ExitPolicy], promises: Mapping[str, Point], confidences: ConfidenceMap
) -> Policies:
    """Prepares the sweeps: their thresholds come from the development set alone."""
    kinds: dict[str, ThresholdPolicy] = {}
    for policy in by_name.values():
        if isinstance(policy, ThresholdPolicy):
            kinds.setdefault(policy.name, policy)  # the first: that of a promise was fitted on a part of the set
    sweeps = [(policy, candidate_thresholds(policy, levels(dev, policy), SWEEP_POINTS)) for policy in kinds.values()]
    return Policies(by_name, promises, sweeps, confidences)


@dataclass(frozen=True)
class _Ruler:
    """What the points of one set are measured with: the resamples of its utterances, and its fixed exits."""

    grid: Grid
    drawn: np.ndarray
    fixed: Sequence[Outcome]

    def point(self, kind: str, name: str, result: Outcome, **labels: Any) -> Point:
        return make_point(self.grid.name, kind, name, result, self.drawn, **labels)

    def policy_point(self, kind: str, name: str, result: Outcome, policy: ExitPolicy, **labels: Any) -> Point:
        over = difference(self.drawn, result, at_cost(self.fixed, result.macs_per_second))
        labels |= {"over_fixed": over.points, "over_fixed_low": over.low, "over_fixed_high": over.high}
        return self.point(kind, name, result, **policy_labels(policy), **labels)


def evaluate(grid: Grid, policies: Policies, runs: Sequence[OnlineRun], separate: Sequence[Point], invisible: int) -> SetResult:
    """Measures a set; ``separate`` are points of separately trained models on it, ``invisible`` counts signs of its references."""
    ruler = _Ruler(grid, draws(len(grid.utterances)), fixed_outcomes(grid))
    exits = {name: exits_of(grid, policy) for name, policy in policies.by_name.items()}
    points = [ruler.point("fixed", f"exit {grid.layers[i]}", reached) for i, reached in enumerate(ruler.fixed)]
    swept = [one for policy, thresholds in policies.sweeps for one in _sweep(ruler, policy, thresholds)]
    points += [point for point, _ in swept]
    points += [promise for promise in policies.promises.values() if promise.set == grid.name]
    points += [_calibrated(ruler, name, rows, policies) for name, rows in exits.items()]
    points += [_online(ruler, run, policies) for run in runs]
    points += [*separate, ruler.point("oracle", "oracle", outcome(grid, oracle_exits(grid), needs_every_exit=False))]
    boldest = _boldest(points)
    return SetResult(
        name=grid.name,
        utterances=len(grid.utterances),
        failed=grid.failed,
        invisible=invisible,
        points=points,
        checks=[str(run) for run in runs],
        stops={name: np.bincount(rows, minlength=len(grid.layers)).tolist() for name, rows in exits.items()},
        exits=exits,
        sweep_stops=[stops for _, stops in swept],
        confidences=reliabilities(grid, policies.confidences),
        hurt=hurt_most(grid, exits[boldest]) if boldest else [],
        hurt_by=boldest,
    )


def _sweep(ruler: _Ruler, policy: ThresholdPolicy, thresholds: Sequence[float]) -> Iterator[tuple[Point, list[int]]]:
    for value, reached in zip(thresholds, sweep(ruler.grid, policy, thresholds), strict=True):
        stops = [int((reached.layers == layer).sum()) for layer in ruler.grid.layers]
        yield ruler.point("sweep", f"{policy.name} {value:g}", reached, policy=policy.name, threshold=value), stops


def _calibrated(ruler: _Ruler, name: str, exits: np.ndarray, policies: Policies) -> Point:
    policy = policies.by_name[name]
    reached = policy_outcome(ruler.grid, exits, policy)
    return ruler.policy_point("calibrated", name, reached, policy, **_promised(name, policies))


def _online(ruler: _Ruler, run: OnlineRun, policies: Policies) -> Point:
    labels = {"rtf": run.rtf, "equals_replay": run.equals_replay, **_promised(run.name, policies)}
    return ruler.policy_point("online", run.name, run.outcome, run.policy, **labels)


def _promised(name: str, policies: Policies) -> dict[str, Any]:
    promise = policies.promises.get(name)
    return {} if promise is None else {"target": promise.target, "reached": promise.reached}


def _boldest(points: Sequence[Point]) -> str:
    """The calibrated policy with the least compute, of the learned ones where there are any; none without policies."""
    calibrated = [point for point in points if point.kind == "calibrated" and point.policy != "fixed"]
    calibrated = [point for point in calibrated if point.policy == "learned"] or calibrated
    return min(calibrated, key=lambda point: point.macs_per_second).name if calibrated else ""


def hurt_most(grid: Grid, exits: np.ndarray) -> list[Hurt]:
    """Utterances that lose most words at their exit (N,) against the final exit, the worst first."""
    errors = outcome(grid, exits, needs_every_exit=False).errors
    lost = errors - grid.errors[:, -1]
    worst = sorted(np.flatnonzero(lost > 0).tolist(), key=lambda row: (-lost[row], grid.utterances[row]))[:MAX_HURT]
    hurt = []
    for row in worst:
        texts = [grid.table.utterances[grid.utterances[row]].rows[index].hypothesis for index in (exits[row], -1)]
        counts = (int(grid.layers[exits[row]]), int(errors[row]), int(grid.errors[row, -1]))
        hurt.append(Hurt(grid.utterances[row], *counts, *texts))
    return hurt
