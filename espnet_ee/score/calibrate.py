"""Finds the threshold of a policy that meets a target on a development set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, replace

import numpy as np

from espnet_ee.errors import UsageError
from espnet_ee.policy.base import ExitPolicy, ThresholdPolicy
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.policy.registry import POLICIES
from espnet_ee.score.fit import Samples, cross_fitted_levels, fit_learned, make_samples
from espnet_ee.score.grid import Grid, Outcome, candidate_thresholds, exits_at, fixed_outcomes, levels, outcome


@dataclass(frozen=True)
class Target:
    """What a calibrated policy has to meet on the development set.

    Attributes:
        kind: ``wer_loss`` (at most so many per cent, relative, above the final exit's error rate; the least compute that
            does), ``macs_per_second`` or ``mean_layer`` (at most so much; the deepest that does).
        value: the bound.
    """

    kind: str
    value: float

    @property
    def tag(self) -> str:
        """A name for files."""
        return f"{self.kind}{self.value:.12g}".replace("+", "")

    def __str__(self) -> str:
        said = {
            "wer_loss": f"at most {self.value:g} % relative WER above the final exit",
            "macs_per_second": f"at most {self.value / 1e6:.12g} MMACs per second",
            "mean_layer": f"at most mean exit layer {self.value:g}",
        }
        return said[self.kind]


COSTS: dict[str, Callable[[Outcome], float]] = {
    "macs_per_second": lambda found: found.macs_per_second,
    "mean_layer": lambda found: found.depth,
}


def parse_target(text: str) -> Target:
    """Reads ``wer_loss=1``, ``macs_per_second=2e7`` or ``mean_layer=6``.

    Raises:
        UsageError: it is none of them.
    """
    kind, _, value = text.partition("=")
    try:
        if kind in ("wer_loss", *COSTS) and np.isfinite(float(value)):
            return Target(kind, float(value))
    except ValueError:
        pass
    raise UsageError(f"target {text!r} is none; give wer_loss=1, macs_per_second=2e7 or mean_layer=6")


@dataclass(frozen=True)
class Family:
    """A policy at all the thresholds worth trying, from the shallowest to the deepest, judged on the development set.

    Attributes:
        name: the policy's name.
        policies: the policy at every threshold.
        outcomes: what each gives on the development set; of the learned policy, cross-fitted.
    """

    name: str
    policies: Sequence[ExitPolicy]
    outcomes: Sequence[Outcome]


@dataclass(frozen=True)
class Calibrated:
    """A policy chosen for a target.

    Attributes:
        policy: with its threshold.
        target: what it was to meet.
        reached: whether it does, on the development set; if not, it is the nearest.
        expected: what it gives on the development set.
    """

    policy: ExitPolicy
    target: Target
    reached: bool
    expected: Outcome


def calibrate(family: Family, target: Target, final_wer: float) -> Calibrated:
    """Chooses the threshold that meets the target, or comes nearest to it.

    Of hundreds of thresholds the least that meets a bound on the error rate is one whose errors were few by luck. So the
    error rate has to meet the bound also as isotonic regression smooths it, which never lets it rise with compute: calibrated on
    80 utterances for a loss of 5 and 10 %, ``learned`` lost 6.6 and 12.0 % on others, without that 8.0 and 13.2 % (the mini
    corpus's generator, 60 repeats).

    Args:
        family: the policy at its thresholds.
        target: what to meet.
        final_wer: error rate of the final exit on the development set, in per cent.
    """
    found = list(family.outcomes)
    if target.kind == "wer_loss":
        from scipy.optimize import isotonic_regression  # half a second to import, and rarely needed

        limit = final_wer * (1 + target.value / 100) + 1e-9
        order = sorted(range(len(found)), key=lambda i: found[i].macs_per_second)
        smooth = isotonic_regression([found[i].wer for i in order], increasing=False).x
        meeting = [i for i, wer in zip(order, smooth, strict=True) if max(wer, found[i].wer) <= limit]
        best = meeting[0] if meeting else min(order, key=lambda i: found[i].wer)
    else:
        cost = COSTS[target.kind]
        meeting = [i for i in range(len(found)) if cost(found[i]) <= target.value]
        best = max(meeting, key=lambda i: cost(found[i])) if meeting else min(range(len(found)), key=lambda i: cost(found[i]))
    return Calibrated(family.policies[best], target, bool(meeting), found[best])


def make_families(dev: Grid, names: Sequence[str], features: Sequence[str]) -> list[Family]:
    """Prepares the policies on the development set; the learned one is fitted here.

    Args:
        dev: the development set.
        names: policies.
        features: what the learned policy reads.

    Raises:
        UsageError: a name is none of the policies.
    """
    return [_family(dev, name, features) for name in names]


def _family(dev: Grid, name: str, features: Sequence[str]) -> Family:
    if name == "fixed":
        return Family(name, [FixedExitPolicy(int(layer)) for layer in dev.layers], fixed_outcomes(dev))
    if name == "learned":
        return _learned_family(dev, features)
    policy = plain_policy(dev, name)
    return _threshold_family(dev, policy, levels(dev, policy))


def plain_policy(grid: Grid, name: str) -> ThresholdPolicy:
    """A policy that has nothing but a threshold, which is still to be set.

    Raises:
        UsageError: the name is unknown or the policy needs more settings.
    """
    plain = {key: policy_class for key, policy_class in POLICIES.items() if _needs_a_threshold_alone(policy_class)}
    if name in plain:
        has_nbest = any(field.name == "nbest" for field in fields(plain[name]))
        return plain[name](0.0, **({"nbest": nbest_size(grid)} if has_nbest else {}))
    known = ", ".join(plain)
    choice = f"fixed, {known} (and learned where it is fitted)"
    raise UsageError(f"policy {name!r} is not known by its name alone; choose among {choice}")


def _needs_a_threshold_alone(policy_class: type[ExitPolicy]) -> bool:
    required = [field.name for field in fields(policy_class) if field.default is MISSING]  # type: ignore[arg-type]
    return issubclass(policy_class, ThresholdPolicy) and required == ["threshold"]


def nbest_size(grid: Grid) -> int:
    """Size of the N-best lists of a table; 2, the least there is, when it has none.

    The longest list's: short utterances have fewer hypotheses than were asked for.
    """
    rows = (row for utterance in grid.table.utterances.values() for row in utterance.rows)
    return max(2, *(len(row.evidence.nbest_scores) for row in rows))


def _threshold_family(dev: Grid, policy: ThresholdPolicy, level: np.ndarray) -> Family:
    thresholds = candidate_thresholds(policy, level)
    found = [outcome(dev, exits_at(policy, level, value), policy.needs_every_exit) for value in thresholds]
    return Family(policy.name, [replace(policy, threshold=value) for value in thresholds], found)


def _learned_family(dev: Grid, features: Sequence[str]) -> Family:
    # Every utterance is judged by a model that has not seen it; the policy that is kept has seen all of them.
    samples = samples_of(dev, features)
    level = np.full(dev.errors.shape, np.nan)
    level[:, :-1] = cross_fitted_levels(samples)
    return _threshold_family(dev, fit_learned(samples, features), level)


def samples_of(dev: Grid, features: Sequence[str]) -> Samples:
    """What the learned policy is fitted on."""
    evidence = [dev.table.utterances[utt].evidence for utt in dev.utterances]
    return make_samples(evidence, dev.errors, [int(layer) for layer in dev.layers], features)


def compared_depths(layers: np.ndarray) -> np.ndarray:
    """Where curves are compared (2K - 3,): at the exits between the first and the last of K, and midway between neighbours."""
    return np.linspace(layers[0], layers[-1], 2 * len(layers) - 1)[1:-1]


def at_cost(found: Sequence[Outcome], macs_per_second: float) -> Outcome:
    """A curve's outcome at this compute: the mixture of the two operating points around it, or the nearest end.

    Args:
        found: operating points of one curve, in any order.
        macs_per_second: the compute.
    """
    order = sorted(found, key=lambda point: point.macs_per_second)
    costs = [point.macs_per_second for point in order]
    after = int(np.searchsorted(costs, macs_per_second))
    if after in (0, len(order)):
        return order[min(after, len(order) - 1)]
    low, high = costs[after - 1], costs[after]
    return order[after - 1].mixed(order[after], (macs_per_second - low) / (high - low))
