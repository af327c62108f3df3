"""Finds the thresholds of policies that meet targets on a development set, and writes them as decoding configurations."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from espnet_ee.errors import UsageError
from espnet_ee.files import atomic_write
from espnet_ee.policy.base import ExitPolicy, ThresholdPolicy
from espnet_ee.policy.confidences import ConfidenceMap
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.policy.learned import NEVER
from espnet_ee.policy.registry import POLICIES
from espnet_ee.policy.searching import SearchConfig
from espnet_ee.score.bootstrap import draws
from espnet_ee.score.confidences import fit_confidences
from espnet_ee.score.fit import FOLDS, cross_fitted_levels, fit_learned, folds, make_samples
from espnet_ee.score.grid import Grid, candidate_thresholds, exits_at, fixed_outcomes, levels, policy_outcome
from espnet_ee.score.outcome import Outcome
from espnet_ee.score.points import make_point, policy_labels, write_exits
from espnet_ee.score.promise import largest_loss, last_kept, loss_bounds

DEFAULT_POLICIES = ("entropy", "confidence", "patience", "learned")
DEFAULT_TARGETS = ("wer_loss=1", "wer_loss=1@90", "wer_loss=5", "wer_loss=10", "mean_layer=6")
_FITTED_ON = (0, 3, 6)  # folds; a promise of the learned policy is tested on the others
_HEADER = "# Calibrated on"  # how a decoding configuration of ours begins
PROMISES = "promises.csv"  # beside the configurations: what the development set promised, as rows of exits.csv


@dataclass(frozen=True)
class Target:
    """What a calibrated policy has to meet on the development set.

    Attributes:
        kind: ``wer_loss`` (at most so many per cent, relative, above the final exit's error rate; the least compute that
            does), ``macs_per_second`` or ``mean_layer`` (at most so much; the deepest that does).
        value: the bound.
        confidence: of ``wer_loss``: per cent of development sets of which the bound holds for new utterances of the same kind
            (:mod:`espnet_ee.score.promise`); None: it is met on the development set itself.
    """

    kind: str
    value: float
    confidence: float | None = None

    @property
    def tag(self) -> str:
        """A name for files."""
        sure = "" if self.confidence is None else f"at{self.confidence:.12g}"
        return f"{self.kind}{self.value:.12g}{sure}".replace("+", "")

    def beyond(self, dev: Grid) -> str:
        """Why nothing is to be calibrated for a mean layer that all choices meet, or none: it lies beyond the set's exits; else empty."""
        first, last = dev.layers[0], dev.layers[-1]
        if self.kind != "mean_layer" or first <= self.value <= last:
            return ""
        return f"the last exit is {last}" if self.value > last else f"the first exit is {first}"

    def __str__(self) -> str:
        said = {
            "wer_loss": f"at most {self.value:g} % relative WER above the final exit",
            "macs_per_second": f"at most {self.value / 1e6:.12g} MMACs per second",
            "mean_layer": f"at most mean exit layer {self.value:g}",
        }[self.kind]
        return said if self.confidence is None else f"{said}, with {self.confidence:g} % confidence"


_LEAST = {"wer_loss": 0.0, "macs_per_second": 1.0, "mean_layer": 1.0}
"""Kinds of targets, and what none is below: stopping early is to lose something, and every exit costs."""


def parse_target(text: str) -> Target:
    """Reads ``wer_loss=1``, ``wer_loss=1@90``, ``macs_per_second=2e7`` or ``mean_layer=6``.

    Raises:
        UsageError: it is none of them.
    """
    kind, _, number = text.partition("=")
    value, at, confidence = number.partition("@")
    try:
        if kind in _LEAST and _LEAST[kind] <= float(value) < math.inf:
            if not at:
                return Target(kind, float(value))
            if kind == "wer_loss" and 50 <= float(confidence) <= 99.9:
                return Target(kind, float(value), float(confidence))
    except ValueError:
        pass
    sure = "wer_loss=1@90 (with 90 % confidence, of 50 to 99.9)"
    raise UsageError(f"target {text!r} cannot be; give wer_loss=1, {sure}, macs_per_second=2e7 or mean_layer=6")


@dataclass(frozen=True)
class Family:
    """A policy at all the thresholds worth trying, from the shallowest to the deepest, judged on the development set.

    Attributes:
        policies: the policy at every threshold.
        outcomes: what each gives on the development set; of the learned policy, cross-fitted.
        final: what the final exit gives on the same utterances.
        largest: words that stopping early costs an utterance, as a bound of what it loses on others takes them.
    """

    policies: Sequence[ExitPolicy]
    outcomes: Sequence[Outcome]
    final: Outcome
    largest: float = 1.0


@dataclass(frozen=True)
class Calibrated:
    """A policy with the threshold that meets a target.

    Attributes:
        name: of the policy and the target, such as ``learned_wer_loss1``.
        policy: with its threshold.
        target: what it was to meet.
        reached: whether it does, on the development set; if not, it is the nearest.
        expected: what it gives on the development set.
        loss: per cent of errors that it makes more there than the final exit.
        bound: of a target with a confidence: what it loses at most, on new utterances of the same kind, in per cent; else NaN.
        confidences: what the model's word confidences are worth on the development set.
    """

    name: str
    policy: ExitPolicy
    target: Target
    reached: bool
    expected: Outcome
    loss: float = math.nan
    bound: float = math.nan
    confidences: ConfidenceMap = field(default_factory=ConfidenceMap)

    def config_in(self, common: DecodingConfig) -> DecodingConfig:
        """The decoding configuration that runs it, with what all have in common."""
        return replace(common, policy=self.policy, confidences=self.confidences)

    def __str__(self) -> str:
        missed = "" if self.reached else "NOT REACHED, the nearest is: "
        promise = f"{self.expected.wer:.2f} % WER at mean exit layer {self.expected.depth:.2f}"
        return f"{self.name}, {self.target}: {missed}{promise}{self.kept}"

    @property
    def kept(self) -> str:
        """What it loses at most, in words; nothing where nobody asked for it."""
        if self.target.confidence is None:
            return ""
        if not self.bound:
            return "; nobody stops early, for too few utterances were seen to promise more"
        return f"; on others at most {self.bound:+.2f} % of {len(self.expected.errors)} utterances"


def calibrate_policies(
    dev: Grid, policies: Sequence[str], targets: Sequence[Target], features: Sequence[str]
) -> list[Calibrated]:
    """Calibrates every policy for every target; of a model with one exit nothing. The learned one, which reads features, is fitted here.

    Raises:
        UsageError: a name is none of the policies, or a target is a mean layer beyond the exits.
        UserError: the set lacks what a policy reads, or is too small to fit the learned one on.
    """
    if len(dev.layers) == 1:
        return []
    for target in targets:
        if why := target.beyond(dev):
            raise UsageError(f"target {target.kind}={target.value:g}: {why}; give another layer")
    plain = make_families(dev, policies, features)
    apart = judged_apart(plain, dev, features) if any(target.confidence for target in targets) else plain
    found = [calibrate(family, target) for target in targets for family in (apart if target.confidence else plain)]
    confidences = fit_confidences(dev)
    return [replace(one, confidences=confidences) for one in found]


def calibrate(family: Family, target: Target) -> Calibrated:
    """Chooses the threshold that meets the target, or comes nearest to it."""
    bound = math.nan
    if target.confidence is not None:
        best, reached, bound = _least_sure(family, target.value, target.confidence)
    elif target.kind == "wer_loss":
        best, reached = _least_smooth(family, target.value)
    else:
        costs = [one.depth if target.kind == "mean_layer" else one.macs_per_second for one in family.outcomes]
        meeting = [i for i, cost in enumerate(costs) if cost <= target.value]
        best, reached = max(meeting, key=costs.__getitem__) if meeting else costs.index(min(costs)), bool(meeting)
    policy, expected, final = family.policies[best], family.outcomes[best], family.final.wer
    loss = 100 * (expected.wer / final - 1) if final else math.nan
    return Calibrated(f"{policy.name}_{target.tag}", policy, target, reached, expected, loss, bound)


def _least_smooth(family: Family, loss: float) -> tuple[int, bool]:
    """The threshold of the least compute that loses so much at most, and whether there is one; else that of the fewest errors.

    Of hundreds of thresholds the least that meets a bound on the error rate is one whose errors were few by luck. So the
    error rate has to meet the bound as isotonic regression smooths it, which never lets it rise with compute.
    """
    from scipy.optimize import isotonic_regression  # half a second to import, and rarely needed

    outcomes, limit = family.outcomes, family.final.wer * (1 + loss / 100) + 1e-9
    order = sorted(range(len(outcomes)), key=lambda i: outcomes[i].macs_per_second)
    smooth = isotonic_regression([outcomes[i].wer for i in order], increasing=False).x
    # The first of a level that isotonic regression makes is never above it: its own rate meets the bound, too.
    meeting = [i for i, wer in zip(order, smooth, strict=True) if wer <= limit]
    return (meeting[0], True) if meeting else (min(order, key=lambda i: outcomes[i].wer), False)


def _least_sure(family: Family, loss: float, confidence: float) -> tuple[int, bool, float]:
    """The threshold up to which, from the deepest on, every one surely loses no more; whether one does; what it loses at most."""
    deepest_first = family.outcomes[::-1]
    errors = np.array([one.errors for one in deepest_first])
    bounds = loss_bounds(errors, family.final.errors, family.largest, confidence)
    if (deepest_first[0].layers == family.final.layers).all():
        bounds[0] = 0.0  # nobody stops early: it is the final exit, of which no sample is needed
    kept = last_kept(bounds, loss)
    return len(bounds) - max(1, kept), kept > 0, float(bounds[max(1, kept) - 1])


def make_families(dev: Grid, names: Sequence[str], features: Sequence[str]) -> list[Family]:
    """Prepares the policies on the development set; see :func:`calibrate_policies`.

    The learned policy is fitted on all utterances, and all are judged, each by a policy fitted without it.
    """
    return [_family(dev, name, features) for name in names]


def judged_apart(families: Sequence[Family], dev: Grid, features: Sequence[str]) -> list[Family]:
    """The families as a promise needs them: of the learned policy the very one that is kept is judged, on utterances that it was
    not fitted on, which leaves fewer for both. Others are as they were."""
    return [_learned_apart(dev, features) if family.policies[0].name == "learned" else family for family in families]


def _family(dev: Grid, name: str, features: Sequence[str]) -> Family:
    policy: ThresholdPolicy
    if name == "fixed":
        fixed = fixed_outcomes(dev)
        return Family([FixedExitPolicy(int(layer)) for layer in dev.layers], fixed, fixed[-1], largest_loss(dev.errors))
    if name == "learned":
        # Every utterance is judged by a model that has not seen it; the policy that is kept has seen all of them.
        samples = make_samples(dev, features)
        policy, level = fit_learned(samples, features), np.full(dev.errors.shape, np.nan)
        level[:, :-1] = cross_fitted_levels(samples)
    else:
        policy = plain_policy(dev, name)
        level = levels(dev, policy)
    return _of_thresholds(dev, policy, level)


def _of_thresholds(dev: Grid, policy: ThresholdPolicy, level: np.ndarray) -> Family:
    thresholds = candidate_thresholds(policy, level)
    outcomes = [policy_outcome(dev, exits_at(policy, level, value), policy) for value in thresholds]
    policies = [replace(policy, threshold=value) for value in thresholds]
    return Family(policies, outcomes, fixed_outcomes(dev)[-1], largest_loss(dev.errors))


def _learned_apart(dev: Grid, features: Sequence[str]) -> Family:
    fold = folds(len(dev.utterances))
    fitted_on = np.isin(fold, _FITTED_ON)
    if fold[-1] < FOLDS - 1:  # so few utterances let nothing be promised but the deepest
        family = _family(dev, "learned", features)
        return _with_last_exit(dev, replace(family, policies=family.policies[-1:], outcomes=family.outcomes[-1:]))
    policy, others = fit_learned(make_samples(dev.part(fitted_on), features), features), dev.part(~fitted_on)
    return _with_last_exit(others, _of_thresholds(others, policy, levels(others, policy)))


def _with_last_exit(dev: Grid, family: Family) -> Family:
    """The family with a threshold at which nobody stops early: where no later exit seems better, ``learned`` has none from 0 on."""
    deepest = family.policies[-1]
    if not isinstance(deepest, ThresholdPolicy) or (family.outcomes[-1].layers == family.final.layers).all():
        return family
    never = replace(deepest, threshold=NEVER)
    last = policy_outcome(dev, np.full(len(dev.utterances), len(dev.layers) - 1), never)
    return replace(family, policies=[*family.policies, never], outcomes=[*family.outcomes, last])


def plain_policy(grid: Grid, name: str) -> ThresholdPolicy:
    """A policy that has nothing but a threshold, which is still to be set; it reads as long an N-best as the set has.

    Raises:
        UsageError: the name is unknown or the policy needs more settings.
    """
    plain = {key: policy_class for key, policy_class in POLICIES.items() if _needs_a_threshold_alone(policy_class)}
    if name not in plain:
        choice = f"fixed, {', '.join(plain)} (and learned where it is fitted)"
        raise UsageError(f"policy {name!r} is not known by its name alone; choose among {choice}")
    settings: dict[str, Any] = {"threshold": 0.0}
    if any(field.name == "nbest" for field in fields(plain[name])):  # type: ignore[arg-type]
        # The longest list's: short utterances have fewer hypotheses than were asked for.
        rows = (row for utterance in grid.table.utterances.values() for row in utterance.rows)
        settings["nbest"] = max(2, *(len(row.evidence.nbest_scores) for row in rows))
    return plain[name](**settings)  # type: ignore[return-value]


def _needs_a_threshold_alone(policy_class: type[ExitPolicy]) -> bool:
    required = [field.name for field in fields(policy_class) if field.default is MISSING]  # type: ignore[arg-type]
    return issubclass(policy_class, ThresholdPolicy) and required == ["threshold"]


def write_calibrated(
    folder: Path, calibrated: Sequence[Calibrated], dev_name: str, common: DecodingConfig | None = None
) -> list[Path]:
    """Writes ``decode_NAME.yaml`` for each, and what the development set promised beside them.

    Those of an earlier calibration go: they may be of another model, and would be packed with this one.

    Args:
        folder: of the configurations, whose paths are returned.
        calibrated: what they run.
        dev_name: of the development set.
        common: what all of them have: how the texts were looked for (None: greedily; its files are named as they are found from
            the folder), and where words get their times from.
    """
    common = common or DecodingConfig()
    if isinstance(common.search, SearchConfig):
        common = replace(common, search=common.search.with_files(lambda path: os.path.relpath(path, folder)))
    paths = [folder / f"decode_{one.name}.yaml" for one in calibrated]
    earlier = [path for path in folder.glob("decode_*.yaml") if path not in paths and _is_calibrated(path)]
    for path, one in zip(paths, calibrated, strict=True):
        with atomic_write(path) as stream:
            stream.write(_configuration(one, dev_name, common))
    promises = []
    for one in calibrated:
        labels = {**policy_labels(one.policy), "target": str(one.target), "reached": one.reached}
        labels |= {"loss": one.loss, "loss_bound": one.bound}
        promises.append(make_point(dev_name, "promise", one.name, one.expected, draws(len(one.expected.errors)), **labels))
    write_exits(folder / PROMISES, promises)
    for path in earlier:  # when all others are there
        path.unlink()
    return paths


def _is_calibrated(path: Path) -> bool:
    return path.read_bytes().startswith(_HEADER.encode())


def _configuration(one: Calibrated, dev_name: str, common: DecodingConfig) -> str:
    promise = f"{one.expected.wer:.2f} % WER, mean exit layer {one.expected.depth:.2f}{one.kept}"
    lines = [f"{_HEADER} {dev_name} for: {one.target}. Expected there: {promise}."]
    if not one.reached:
        lines.append("# NOT REACHED: this is the nearest operating point.")
    return "\n".join(lines) + "\n" + one.config_in(common).to_yaml()
