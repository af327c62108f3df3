"""Stop at the first exit whose cluster head is sure of its frames (DAISY, arXiv 2406.05464)."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from espnet_ee.policy.base import ThresholdPolicy
from espnet_ee.policy.evidence import ExitEvidence


@dataclass(frozen=True)
class ClusterEntropyPolicy(ThresholdPolicy):
    """Stops at the first exit whose mean entropy over clusters is below the threshold; for models with cluster heads.

    Attributes:
        threshold: the entropy below which an exit is believed, in nats per frame.
    """

    name: ClassVar[str] = "cluster_entropy"
    reads: ClassVar[frozenset[str]] = frozenset({"cluster_entropy"})
    compare = operator.lt

    def level(self, evidence: Sequence[ExitEvidence]) -> float:
        return evidence[-1].cluster_entropy
