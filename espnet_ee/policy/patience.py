"""Stop when successive exits agree."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from espnet_ee.policy.base import ThresholdPolicy
from espnet_ee.policy.evidence import ExitEvidence


@dataclass(frozen=True)
class PatiencePolicy(ThresholdPolicy):
    """Stops as soon as the last ``threshold`` exits gave the same tokens.

    Attributes:
        threshold: how many successive exits must agree, the current one counted; 1 stops at the first.
    """

    name: ClassVar[str] = "patience"
    reads: ClassVar[frozenset[str]] = frozenset({"tokens", "entropy"})
    compare = operator.ge
    least: ClassVar[float] = 1.0
    counts: ClassVar[bool] = True

    def level(self, evidence: Sequence[ExitEvidence]) -> float:
        # The tokens of an exit whose numbers are broken are worth nothing, even where they agree.
        agreeing = 0
        for exit_ in reversed(evidence):
            if not math.isfinite(exit_.entropy) or exit_.tokens != evidence[-1].tokens:
                break
            agreeing += 1
        return float(agreeing) if agreeing else math.nan
