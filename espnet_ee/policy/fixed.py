"""Every utterance stops at the same exit: the reference each other policy is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from espnet_ee.errors import UserError
from espnet_ee.policy.base import ExitPolicy
from espnet_ee.policy.evidence import ExitEvidence


@dataclass(frozen=True)
class FixedExitPolicy(ExitPolicy):
    """Stops at one exit layer, whatever the evidence says.

    Attributes:
        exit_layer: 1-based number of the block after which every utterance stops.
    """

    name: ClassVar[str] = "fixed"
    reads: ClassVar[frozenset[str]] = frozenset()
    exit_layer: int

    def should_stop(self, evidence: Sequence[ExitEvidence]) -> bool:
        return evidence[-1].layer >= self.exit_layer

    def check(self, exit_layers: Sequence[int]) -> None:
        if self.exit_layer not in exit_layers:
            have = " ".join(map(str, exit_layers))
            raise UserError(
                f"policy fixed: the model has no exit after layer {self.exit_layer}; choose exit_layer among {have}"
            )
