"""How much each exit counts in the joint loss, and how much of it reaches the blocks that all exits share."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from espnet_ee.errors import UsageError

GRADIENTS = ("full", "scaled", "rotating")


class ExitWeights(torch.nn.Module):
    """The weights of a training step; those of evaluation are always all of them.

    Args:
        weights: of the exits, rising; see :func:`exit_weights`.
        gradients: ``"rotating"``: a training step is for the final exit and one below, which take turns. Else every step is
            for all.

    Raises:
        UsageError: ``gradients`` is not one of ``GRADIENTS``.
    """

    weights: torch.Tensor
    step: torch.Tensor

    def __init__(self, weights: Sequence[float], gradients: str) -> None:
        super().__init__()
        if gradients not in GRADIENTS:
            raise UsageError(f"model_conf: exit_gradients {gradients!r} is not one of {', '.join(GRADIENTS)}")
        self.register_buffer("weights", torch.tensor(weights), persistent=False)
        self.rotating = gradients == "rotating" and len(weights) > 1
        if self.rotating:
            # Kept with the parameters: a training that goes on goes on with the exit whose turn it is.
            self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self) -> torch.Tensor:
        """Weights (M,); in training the next call is the next step."""
        if not self.rotating or not self.training:
            return self.weights
        # A weight of 0 and not a loss left out: processes that train together wait for the gradient of every parameter.
        counts = torch.zeros_like(self.weights)
        counts[-1] = counts[self.step % (len(counts) - 1)] = 1.0
        self.step += 1
        return self.weights * counts


def exit_weights(weights: str | Sequence[float], exits: int) -> tuple[float, ...]:
    """One weight per exit of the option ``exit_weights``: ``"sum"`` (every weight 1, the paper), ``"mean"`` (1/exits) or a list of numbers.

    Raises:
        UsageError: another word, or a list of the wrong length, with something not finite, negative or all zero.
    """
    if weights == "sum":
        return (1.0,) * exits
    if weights == "mean":
        return (1.0 / exits,) * exits
    numbers = isinstance(weights, (list, tuple)) and all(type(weight) in (int, float) for weight in weights)
    if not numbers:
        raise UsageError(f"model_conf: exit_weights {weights!r} is not sum, mean or a list of numbers")
    values = tuple(float(weight) for weight in weights)
    if len(values) != exits:
        raise UsageError(f"model_conf: exit_weights has {len(values)} numbers for {exits} exits")
    if not all(0 <= value < math.inf for value in values) or max(values) == 0:
        raise UsageError(f"model_conf: exit_weights {list(values)} must be finite, and not negative nor all zero")
    return values
