"""Stop at the first exit that is sure of its frames (arXiv 2309.09546, section 3)."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from espnet_ee.policy.base import ThresholdPolicy
from espnet_ee.policy.evidence import ExitEvidence


@dataclass(frozen=True)
class EntropyPolicy(ThresholdPolicy):
    """Stops at the first exit whose mean frame entropy is below the threshold.

    The entropy is never negative, so a threshold of 0 runs every utterance to the last exit and an infinite one stops
    each at the first.

    Attributes:
        threshold: the entropy below which an exit is believed, in nats per frame and token of the vocabulary.
    """

    name: ClassVar[str] = "entropy"
    reads: ClassVar[frozenset[str]] = frozenset({"entropy"})
    compare = operator.lt

    def level(self, evidence: Sequence[ExitEvidence]) -> float:
        return evidence[-1].entropy
