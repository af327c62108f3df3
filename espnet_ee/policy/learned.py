"""Stop when a small model, fitted on a development set, expects little of any later exit."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from espnet_ee.errors import UserError
from espnet_ee.policy.base import ThresholdPolicy
from espnet_ee.policy.evidence import ExitEvidence
from espnet_ee.policy.features import FEATURES, log_entropy

MOST = 50.0  # far beyond any error rate, and an exponential that floats can hold


NEVER = -1.0
"""A threshold at which nobody stops early, also where a return is 0: calibration's, when too little was seen to promise more."""


@dataclass(frozen=True)
class LearnedPolicy(ThresholdPolicy):
    """Stops at the first exit where what any later exit may save no longer pays for the layers on the way to it.

    The errors of this exit that are to be expected, per frame, are ``exp(intercepts[layer] + sum_f weights[f] * f(evidence))``;
    ``returns[layer]`` is the share of them that one more layer saves (:func:`espnet_ee.score.fit.likely_returns`).
    It is 0 where surely no later exit is better than this one on the whole: nobody goes deeper then, at any threshold from 0 on.
    :func:`espnet_ee.score.fit.fit_learned` finds the numbers. A feature that is NaN (a table or a runtime without
    that evidence, a broken exit) never stops an utterance.

    Attributes:
        threshold: errors per frame that a layer must save; at 0 an utterance goes on as long as any later exit is better.
        weights: number by feature, see :data:`espnet_ee.policy.features.FEATURES`.
        intercepts: number by exit layer, of every exit but the last.
        returns: number by exit layer, likewise; 0 or more.
    """

    name: ClassVar[str] = "learned"
    compare = operator.le
    weights: Mapping[str, float]
    intercepts: Mapping[int, float]
    returns: Mapping[int, float]

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = sorted(set(self.weights) - set(FEATURES))
        if unknown:
            raise UserError(f"policy learned: unknown feature {unknown[0]!r}; known are {', '.join(FEATURES)}")
        if set(self.intercepts) != set(self.returns):
            raise UserError("policy learned: intercepts and returns name different exit layers; fit the policy again")
        if not all(share >= 0 for share in self.returns.values()):
            raise UserError("policy learned: a return is below 0; fit the policy again")

    def check_threshold(self) -> None:
        if self.threshold != NEVER:
            super().check_threshold()

    @cached_property
    def reads(self) -> frozenset[str]:  # type: ignore[override]
        """What its features read; the entropy says whether an exit is broken."""
        return frozenset({"entropy"}).union(*(FEATURES[name].reads for name in self.weights))

    @cached_property
    def _terms(self) -> tuple[tuple[float, Callable[[Sequence[ExitEvidence]], float]], ...]:
        """Each weight with its feature."""
        return tuple((weight, FEATURES[name].of) for name, weight in self.weights.items())

    def should_stop(self, evidence: Sequence[ExitEvidence]) -> bool:
        """As of every threshold; most exits that an utterance passes are ruled out by their entropy, before tokens are made."""
        return not self._goes_on(evidence[-1], len(evidence)) and super().should_stop(evidence)

    def _goes_on(self, exit_: ExitEvidence, exits: int) -> bool:
        """Whether the entropy is so large that the level is above the threshold, whatever the other features are."""
        if exit_.layer not in self.intercepts or not math.isfinite(exit_.entropy):
            return False
        least = self._least.get(exits)
        if least is None:
            others = [(weight, FEATURES[name].most(exits)) for name, weight in self.weights.items() if name != "log_entropy"]
            least = self._least[exits] = sum(min(0.0, weight * most) for weight, most in others if weight)
        log_errors = self.intercepts[exit_.layer] + least + self.weights.get("log_entropy", 0.0) * log_entropy([exit_])
        # A little above the threshold: numbers are rounded, and a confidence may be 1.0001.
        return math.exp(min(log_errors, MOST)) * self.returns[exit_.layer] > 1.001 * max(0.0, self.threshold)

    @cached_property
    def _least(self) -> dict[int, float]:
        """Of all features but the entropy's, what they add at least, by the number of exits so far."""
        return {}

    def level(self, evidence: Sequence[ExitEvidence]) -> float:
        layer = evidence[-1].layer
        # The last exit stops anyway; NaN here must not reach a logarithm.
        if layer not in self.intercepts or not math.isfinite(evidence[-1].entropy):
            return math.nan
        log_errors = self.intercepts[layer] + sum([weight * of(evidence) for weight, of in self._terms])
        # Asked first: NaN or minus infinity must not pass for "nothing to gain".
        return math.exp(min(log_errors, MOST)) * self.returns[layer] if math.isfinite(log_errors) else math.nan

    def check(self, exit_layers: Sequence[int]) -> None:
        if set(self.intercepts) != set(exit_layers[:-1]):
            have, wanted = (" ".join(map(str, sorted(layers))) for layers in (self.intercepts, exit_layers[:-1]))
            raise UserError(
                f"policy learned: it was fitted for exits {have} below the last, the model has {wanted}; fit it again"
            )
