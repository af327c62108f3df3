"""Calibrates policies on a development set and measures them on others: the numbers behind POLICIES.md."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espnet_ee.errors import UserError
from espnet_ee.policy.base import ExitPolicy, ThresholdPolicy
from espnet_ee.policy.features import FEATURES
from espnet_ee.score.bootstrap import Difference, Interval, depth_interval, difference, draws, macs_interval, wer_interval
from espnet_ee.score.calibrate import Calibrated, Family, Target, at_cost, calibrate, make_families, samples_of
from espnet_ee.score.fit import cross_fitted_error
from espnet_ee.score.grid import Grid, Outcome, exits_of, fixed_outcomes, outcome, sweep
from espnet_ee.score.report import thinned

MAX_HURT = 10
CURVE_POINTS = 60  # more than a curve shows


@dataclass(frozen=True)
class Measured:
    """A calibrated policy on a test set.

    Attributes:
        calibrated: the policy and what the development set promised.
        expected_wer: the promise's interval, in per cent.
        found: what it gives on the test set.
        exits: index of the exit of every utterance (N,).
        wer: interval of its error rate in per cent.
        macs: interval of its compute per second.
        depth: interval of its mean exit layer.
        over_fixed: error rate less that of the line of fixed exits at the same compute, in points of per cent.
        over_entropy: likewise, less that of the entropy policy's curve; None when that was not calibrated.
    """

    calibrated: Calibrated
    expected_wer: Interval
    found: Outcome
    exits: np.ndarray
    wer: Interval
    macs: Interval
    depth: Interval
    over_fixed: Difference
    over_entropy: Difference | None


@dataclass(frozen=True)
class SetStudy:
    """All that was measured on one test set.

    Attributes:
        grid: the set.
        fixed: every exit.
        curves: by policy, its outcome at each of the family's thresholds.
        oracles: "first exit no worse than the last" and "best exit"; bounds, no methods.
        measured: the calibrated points.
        drawn: the resamples of its utterances.
    """

    grid: Grid
    fixed: Sequence[Outcome]
    curves: Mapping[str, Sequence[Outcome]]
    oracles: Mapping[str, Outcome]
    measured: Sequence[Measured]
    drawn: np.ndarray


@dataclass(frozen=True)
class Study:
    """Everything the report shows: the calibrated policies, and how each test set takes them."""

    dev: Grid
    targets: Sequence[Target]
    chosen: Sequence[Calibrated]
    sets: Sequence[SetStudy]
    carried: Sequence[tuple[str, float, float]]


def refuse_same_table(dev: Path, tests: Sequence[Path], allowed: bool) -> None:
    """Thresholds are never chosen on the set they are reported on.

    Raises:
        UserError: a test table is the development table, under whatever name.
    """
    if allowed:
        return
    content = hashlib.sha256(dev.read_bytes()).digest() if dev.exists() else b""
    for path in tests:
        if path.exists() and hashlib.sha256(path.read_bytes()).digest() == content:
            raise UserError(
                f"{path}: is the table the policies are calibrated on; report on another set, or say --allow_same true"
            )


def make_study(
    dev: Grid, tests: Sequence[Grid], names: Sequence[str], targets: Sequence[Target], features: Sequence[str]
) -> Study:
    """Calibrates every policy for every target on ``dev`` and measures it on the test sets.

    Raises:
        UserError: a test set has other exits than the development set.
    """
    for test in tests:
        if test.table.exit_layers != dev.table.exit_layers:
            raise UserError(f"set {test.name}: its exits are not those of {dev.name}; decode both with one model")
    families = make_families(dev, names, features)
    final_wer = fixed_outcomes(dev)[-1].wer
    chosen = [calibrate(family, target, final_wer) for target in targets for family in families]
    dev_draws = draws(len(dev.words))
    promised = [wer_interval(dev_draws, one.expected) for one in chosen]
    sets = [_study_set(test, families, list(zip(chosen, promised, strict=True))) for test in tests]
    carried = what_carried(dev, features) if "learned" in names else []
    return Study(dev, targets, chosen, sets, carried)


def _study_set(test: Grid, families: Sequence[Family], chosen: Sequence[tuple[Calibrated, Interval]]) -> SetStudy:
    drawn, fixed = draws(len(test.words)), fixed_outcomes(test)
    curves = {family.name: curve_of(test, thinned(family.policies, CURVE_POINTS)) for family in families}
    errors = test.errors
    no_worse = (errors <= errors[:, -1:]).argmax(axis=1)
    oracles = {
        "oracle: first exit no worse than the last": outcome(test, no_worse, False),
        "oracle: best exit": outcome(test, errors.argmin(axis=1), False),
    }
    measured = [_measure(test, one, promise, drawn, fixed, curves.get("entropy")) for one, promise in chosen]
    return SetStudy(test, fixed, curves, oracles, measured, drawn)


def curve_of(test: Grid, policies: Sequence[ExitPolicy]) -> list[Outcome]:
    """What each policy of a family gives; of a threshold policy all but the threshold is computed once."""
    first = policies[0]
    if isinstance(first, ThresholdPolicy):
        return sweep(test, first, [policy.threshold for policy in policies])
    return [outcome(test, exits_of(test, policy), policy.needs_every_exit) for policy in policies]


def _measure(
    test: Grid,
    one: Calibrated,
    promise: Interval,
    drawn: np.ndarray,
    fixed: Sequence[Outcome],
    entropy: Sequence[Outcome] | None,
) -> Measured:
    exits = exits_of(test, one.policy)
    found = outcome(test, exits, one.policy.needs_every_exit)
    return Measured(
        calibrated=one,
        expected_wer=promise,
        found=found,
        exits=exits,
        wer=wer_interval(drawn, found),
        macs=macs_interval(drawn, found),
        depth=depth_interval(drawn, found),
        over_fixed=difference(drawn, found, at_cost(fixed, found.macs_per_second)),
        over_entropy=difference(drawn, found, at_cost(entropy, found.macs_per_second)) if entropy else None,
    )


def what_carried(dev: Grid, features: Sequence[str]) -> list[tuple[str, float, float]]:
    """For each evidence the cross-fitted WER, averaged over depths, of it alone and of all the chosen ones without it.

    An evidence that is not among the chosen ones is added to them instead. The first line, named "all chosen", holds the
    chosen ones. Evidence that the table lacks is left out.
    """

    def rate(names: Sequence[str]) -> float:
        if not names:
            return float("nan")
        return 100 * cross_fitted_error(samples_of(dev, names)) / max(1, int(dev.words.sum()))

    chosen = rate(features)
    lines = [("all chosen", chosen, chosen)]
    for name in FEATURES:
        others = [other for other in features if other != name]
        try:
            lines.append((name, rate([name]), rate(others if name in features else [*features, name])))
        except UserError:
            continue
    return lines


def hurt_most(grid: Grid, measured: Measured) -> list[int]:
    """Utterances (by number) that lose most words against the final exit, the worst first."""
    chosen = grid.errors[np.arange(len(measured.exits)), measured.exits]
    lost = chosen - grid.errors[:, -1]
    order = sorted(np.flatnonzero(lost > 0), key=lambda i: (-lost[i], grid.utterances[i]))
    return [int(i) for i in order[:MAX_HURT]]
