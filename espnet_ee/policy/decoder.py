"""Stop where an exit's attention decoder is sure of the text that its joint search found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from espnet_ee.policy.base import ThresholdPolicy
from espnet_ee.policy.evidence import ExitEvidence
from espnet_ee.policy.posterior import posterior_of_best


@dataclass(frozen=True)
class DecoderPolicy(ThresholdPolicy):
    """Stops at the first exit whose decoder gives the tokens of its text, the end included, a geometric mean probability above the threshold.

    Attributes:
        threshold: the probability above which an exit is believed, in 0..1.
    """

    name: ClassVar[str] = "decoder"
    reads: ClassVar[frozenset[str]] = frozenset({"decoder_log_prob"})
    most: ClassVar[float] = 1.0

    def level(self, evidence: Sequence[ExitEvidence]) -> float:
        mean = evidence[-1].decoder_log_prob
        return math.exp(mean) if -math.inf < mean <= 0 else math.nan


@dataclass(frozen=True)
class DecoderPosteriorPolicy(ThresholdPolicy):
    """Stops at the first exit whose best text stands out of the joint search's N best: ``exp(s_1) / sum_k exp(s_k)``.

    Attributes:
        threshold: the posterior above which an exit is believed, in 0..1.
    """

    name: ClassVar[str] = "decoder_posterior"
    reads: ClassVar[frozenset[str]] = frozenset({"decoder_scores"})
    most: ClassVar[float] = 1.0

    def level(self, evidence: Sequence[ExitEvidence]) -> float:
        return posterior_of_best(evidence[-1].decoder_scores)
