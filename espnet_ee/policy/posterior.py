"""Stop at the first exit whose best hypothesis stands out of its N best (arXiv 2309.09546, section 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from espnet_ee.errors import UserError
from espnet_ee.policy.base import ThresholdPolicy
from espnet_ee.policy.evidence import ExitEvidence


@dataclass(frozen=True)
class PosteriorPolicy(ThresholdPolicy):
    """Stops at the first exit whose N-best posterior ``exp(s_1) / sum_k exp(s_k)`` is above the threshold.

    Attributes:
        threshold: the posterior above which an exit is believed, in 0..1.
        nbest: N, the hypotheses of the beam search that is made at every exit passed.
    """

    name: ClassVar[str] = "posterior"
    reads: ClassVar[frozenset[str]] = frozenset({"nbest_scores"})
    most: ClassVar[float] = 1.0
    nbest: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nbest < 2:
            raise UserError(f"policy posterior: nbest is {self.nbest}; the best of one is always sure, give 2 or more")

    def level(self, evidence: Sequence[ExitEvidence]) -> float:
        return posterior_of_best(evidence[-1].nbest_scores[: self.nbest])


def posterior_of_best(scores: Sequence[float]) -> float:
    """``exp(s_1) / sum_k exp(s_k)`` of log scores, the best first; NaN without any, or with one that is broken."""
    if not scores or not all(map(math.isfinite, scores)):
        return math.nan
    best = max(scores)
    return math.exp(scores[0] - best) / math.fsum(math.exp(score - best) for score in scores)
