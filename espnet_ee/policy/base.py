"""The interface of exit policies and the one loop that applies them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from espnet_ee.policy.evidence import ExitEvidence


class ExitPolicy(ABC):
    """Turns the evidence so far into stop or go on.

    A policy is a frozen dataclass: its fields are the keys of ``policy_conf``. It keeps no state between calls, so
    that an offline replay and an online run cannot differ. Evidence that is NaN or infinite never stops an utterance.

    Attributes:
        name: the policy's key in :data:`espnet_ee.policy.registry.POLICIES`.
        needs_every_exit: whether the heads below the chosen exit must be computed; they then count as compute.
        needs_nbest: size of the N-best list the policy reads, ``False`` for none (an N-best costs a beam search).
    """

    name: ClassVar[str]
    needs_every_exit: ClassVar[bool] = True
    needs_nbest: ClassVar[int | bool] = False

    @abstractmethod
    def should_stop(self, evidence: Sequence[ExitEvidence]) -> bool:
        """Says whether the utterance stops here.

        Args:
            evidence: one entry for each exit passed so far, in order; the last is the current exit. Never empty.
        """

    def check(self, exit_layers: Sequence[int]) -> None:  # noqa: B027  (most policies fit every model)
        """Checks the policy against a model's exits before anything is computed.

        Args:
            exit_layers: the model's exit layers, rising.

        Raises:
            UserError: the policy does not fit the model.
        """


def choose_exit(policy: ExitPolicy, evidence: Sequence[ExitEvidence]) -> int:
    """Returns the index of the exit at which the policy stops; the last exit always stops.

    Args:
        policy: the policy to replay.
        evidence: the evidence of all exits of one utterance, in the order of the exits.
    """
    if not evidence:
        raise ValueError("no evidence: an utterance passes at least one exit")
    for index in range(len(evidence) - 1):
        if policy.should_stop(evidence[: index + 1]):
            return index
    return len(evidence) - 1
