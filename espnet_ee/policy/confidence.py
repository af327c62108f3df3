"""Stop at the first exit that is sure of the tokens it spoke."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from espnet_ee.policy.base import ThresholdPolicy
from espnet_ee.policy.evidence import ExitEvidence


@dataclass(frozen=True)
class ConfidencePolicy(ThresholdPolicy):
    """Stops at the first exit whose mean largest probability over the non-blank frames is above the threshold.

    An exit that speaks no token has no such frame and never stops an utterance: a shallow exit that says nothing is
    as often deaf as right.

    Attributes:
        threshold: the confidence above which an exit is believed, in 0..1.
    """

    name: ClassVar[str] = "confidence"
    reads: ClassVar[frozenset[str]] = frozenset({"spoken_confidence"})
    most: ClassVar[float] = 1.0

    def level(self, evidence: Sequence[ExitEvidence]) -> float:
        return evidence[-1].spoken_confidence
