"""The interface of exit policies and the one loop that applies them."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

from espnet_ee.errors import UserError
from espnet_ee.policy.evidence import OF_DECODER, ExitEvidence


class ExitPolicy(ABC):
    """Turns the evidence so far into stop or go on.

    A policy is a frozen dataclass: its fields are the keys of ``policy_conf``. It keeps no state between calls, so
    that an offline replay and an online run cannot differ. Evidence that is NaN or infinite never stops an utterance.

    Attributes:
        name: the policy's key in :data:`espnet_ee.policy.registry.POLICIES`.
        reads: the fields of :class:`ExitEvidence` that it looks at; who makes evidence makes these.
        nbest: size of the N-best list it reads, 0 for none (an N-best costs a beam search).
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[str]]
    nbest: int = 0

    @property
    def needs_every_exit(self) -> bool:
        """Whether the heads below the exit it stops at must be computed; they then count as compute."""
        return bool(self.reads)

    @property
    def needs_every_search(self) -> bool:
        """Whether the attention decoders below the exit it stops at must search, too; they then count as compute."""
        return bool(self.reads & OF_DECODER)

    @abstractmethod
    def should_stop(self, evidence: Sequence[ExitEvidence]) -> bool:
        """Whether the utterance stops at the last of the exits that this is the evidence of, in their order; never empty."""

    def check(self, exit_layers: Sequence[int]) -> None:  # noqa: B027  (most policies fit every model)
        """Raises UserError, before anything is computed, if the policy does not fit a model with these exit layers, rising."""


@dataclass(frozen=True)
class ThresholdPolicy(ExitPolicy):
    """A policy that compares one number with its threshold: a subclass says which number.

    The number does not depend on the threshold, so the depth is monotone in the threshold, and a replay computes the
    numbers of a table once for all thresholds.

    Attributes:
        compare: how level and threshold are compared; true means stop.
        least: thresholds below it are no use: no operating point there is worth having, or none other than at it.
        most: nor are those above this one.
        counts: whether the level is a count, and so the threshold.
        threshold: what the level is compared with.
    """

    compare: ClassVar[Callable[[Any, Any], Any]] = operator.gt
    least: ClassVar[float] = 0.0
    most: ClassVar[float] = math.inf
    counts: ClassVar[bool] = False
    threshold: float

    def __post_init__(self) -> None:
        number = isinstance(self.threshold, Real) and not isinstance(self.threshold, bool)
        if not number or math.isnan(self.threshold):
            raise UserError(f"policy {self.name}: threshold is not a number; give a number such as 0.01")

    def check_threshold(self) -> None:
        """Raises UserError for a threshold that no level can lie on both sides of: what is typed so is a slip."""
        counted = not self.counts or not math.isfinite(self.threshold) or self.threshold == int(self.threshold)
        if not (self.least <= self.threshold <= self.most and counted):
            kind = "a whole number" if self.counts else "a number"
            span = f"from {self.least:g} on" if self.most == math.inf else f"from {self.least:g} to {self.most:g}"
            raise UserError(f"policy {self.name}: threshold {self.threshold:g}: give {kind} {span}")

    @abstractmethod
    def level(self, evidence: Sequence[ExitEvidence]) -> float:
        """The number to compare, of what :meth:`should_stop` takes; NaN or infinite when there is nothing to go by."""

    def should_stop(self, evidence: Sequence[ExitEvidence]) -> bool:
        level = self.level(evidence)
        return math.isfinite(level) and bool(type(self).compare(level, self.threshold))


def choose_exit(policy: ExitPolicy, evidence: Sequence[ExitEvidence]) -> int:
    """The index of the exit at which the policy stops, of all exits' evidence of one utterance; the last exit always stops."""
    if not evidence:
        raise ValueError("no evidence: an utterance passes at least one exit")
    for index in range(len(evidence) - 1):
        if policy.should_stop(evidence[: index + 1]):
            return index
    return len(evidence) - 1
