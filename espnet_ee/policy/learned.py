"""Stop when a small model, fitted on a development set, expects little of going deeper."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from espnet_ee.errors import UserError
from espnet_ee.policy.base import ThresholdPolicy
from espnet_ee.policy.evidence import ExitEvidence
from espnet_ee.policy.features import FEATURES


@dataclass(frozen=True)
class LearnedPolicy(ThresholdPolicy):
    """Stops at the first exit where the errors that going deeper may save, per price of the way left, fall below the threshold.

    The expected errors per frame are ``biases[layer] + sum_f weights[f] * f(evidence)``; a positive expectation is
    divided by ``prices[layer]``. :func:`espnet_ee.policy.fit.fit_learned` finds the numbers. A feature that is NaN (a
    table or a runtime without that evidence, a broken exit) never stops an utterance.

    Attributes:
        threshold: errors per frame that one unit of price must save.
        weights: number by feature, see :data:`espnet_ee.policy.features.FEATURES`.
        biases: number by exit layer, of every exit but the last.
        prices: price of the way from the exit layer to the last one.
    """

    name: ClassVar[str] = "learned"
    compare = operator.lt
    weights: Mapping[str, float]
    biases: Mapping[int, float]
    prices: Mapping[int, float]

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = sorted(set(self.weights) - set(FEATURES))
        if unknown:
            raise UserError(f"policy learned: unknown feature {unknown[0]!r}; known are {', '.join(FEATURES)}")
        if set(self.biases) != set(self.prices):
            raise UserError("policy learned: biases and prices name different exit layers; fit the policy again")
        if not all(price > 0 for price in self.prices.values()):
            raise UserError("policy learned: a price is not above 0; fit the policy again")

    def level(self, evidence: Sequence[ExitEvidence]) -> float:
        layer = evidence[-1].layer
        # The last exit stops anyway; NaN here must not reach a logarithm.
        if layer not in self.biases or not math.isfinite(evidence[-1].entropy):
            return math.nan
        terms = (weight * FEATURES[feature](evidence) for feature, weight in self.weights.items())
        return priced(self.biases[layer] + sum(terms), self.prices[layer])

    def check(self, exit_layers: Sequence[int]) -> None:
        if set(self.biases) != set(exit_layers[:-1]):
            have, wanted = (" ".join(map(str, sorted(layers))) for layers in (self.biases, exit_layers[:-1]))
            raise UserError(
                f"policy learned: it was fitted for exits {have} below the last, the model has {wanted}; fit it again"
            )


def priced(expected: float, price: float) -> float:
    """Expected errors per price; no errors to save stay what they are, however short the way."""
    return expected / price if expected > 0 else expected
