"""Stop at the first exit that is sure of its frames (arXiv 2309.09546, section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from espnet_ee.errors import UserError
from espnet_ee.policy.base import ExitPolicy
from espnet_ee.policy.evidence import ExitEvidence


@dataclass(frozen=True)
class EntropyPolicy(ExitPolicy):
    """Stops at the first exit whose mean frame entropy is below the threshold.

    The entropy is never negative, so a threshold of 0 runs every utterance to the last exit and an infinite one stops
    each at the first.

    Attributes:
        threshold: the entropy below which an exit is believed, in nats per frame and token of the vocabulary.
    """

    name: ClassVar[str] = "entropy"
    threshold: float

    def __post_init__(self) -> None:
        if math.isnan(self.threshold):
            raise UserError("policy entropy: threshold is not a number; give a number such as 0.01")

    def should_stop(self, evidence: Sequence[ExitEvidence]) -> bool:
        entropy = evidence[-1].entropy
        return math.isfinite(entropy) and entropy < self.threshold
