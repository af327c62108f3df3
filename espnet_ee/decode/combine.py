"""Combining exits: the log-probabilities of the exits passed on the way, averaged with weights fitted on a development set.

The heads of the passed exits were computed for the policy anyway, so the average costs one multiplication per frame, token
and exit. It changes the text only; the policy still sees every exit's own evidence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from espnet_ee.errors import UserError

Weights = Mapping[int, Mapping[int, float]]  # exit layer -> layer of an exit passed on the way -> weight
_NO_WEIGHTS = "combine: must be weights by exit and exit passed, as fit_combine writes them"


def check_weights(weights: Weights, exit_layers: Sequence[int]) -> None:
    """Checks the weights against a model's exits.

    Raises:
        UserError: an exit lacks its weights, or they name exits that are not passed on the way to it.
    """
    for index, layer in enumerate(exit_layers):
        passed = list(exit_layers[: index + 1])
        if sorted(weights.get(layer, {})) != passed:
            have = " ".join(map(str, sorted(weights.get(layer, {})))) or "none"
            raise UserError(
                f"combine: exit {layer} needs weights of exits {' '.join(map(str, passed))}, has {have}; "
                "fit them for this model (python -m espnet_ee.bin.fit_combine)"
            )


def read_weights(given: Any) -> Weights:
    """Checks what a configuration holds under ``combine``, before any model is known.

    Raises:
        UserError: it is not a table of tables of finite numbers by exit layer.
    """
    if not isinstance(given, Mapping) or not all(isinstance(weights, Mapping) for weights in given.values()):
        raise UserError(_NO_WEIGHTS)
    for layer, weights in given.items():
        if not all(type(number) is int for number in (layer, *weights)):
            raise UserError(_NO_WEIGHTS)
        for of, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise UserError(f"combine: the weight of exit {of} at exit {layer} is {weight!r}; give a finite number")
    return given


def combined(log_probs: Sequence[torch.Tensor], weights: Sequence[float] | torch.Tensor) -> torch.Tensor:
    """Weighted sum of the exits' log-probabilities, each (..., V), on the way to one exit."""
    return sum((weight * one for weight, one in zip(weights, log_probs, strict=True)), torch.zeros(()))
