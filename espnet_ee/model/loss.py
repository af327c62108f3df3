"""CTC over several exits in one call, and the weights of the joint loss.

Source: arXiv 2309.09546, eq. (1): L = sum over exits m of w_m * L_m, every w_m = 1 by default.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from espnet_ee.errors import UsageError


def exit_weights(weights: str | Sequence[float], exits: int) -> tuple[float, ...]:
    """Resolves the option ``exit_weights`` to one weight per exit.

    Args:
        weights: ``"sum"`` (every weight 1, the paper), ``"mean"`` (1/exits) or a list of numbers.
        exits: number of exits.

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


def frames_needed(text: torch.Tensor, text_lengths: torch.Tensor) -> torch.Tensor:
    """Least number of frames a CTC alignment of each label sequence takes: labels + repeats (B,).

    Args:
        text: labels (B, L), padded.
        text_lengths: (B,).
    """
    if not text.size(1):  # a batch of utterances without a word
        return text_lengths
    repeats = (text[:, 1:] == text[:, :-1]).cumsum(dim=1)
    zero = torch.zeros_like(repeats[:, :1]) if repeats.size(1) else torch.zeros_like(text[:, :1])
    repeats = torch.cat([zero, repeats], dim=1)
    last = (text_lengths - 1).clamp(min=0)
    return text_lengths + repeats.gather(1, last[:, None])[:, 0]


def exits_ctc_loss(
    log_probs: torch.Tensor, olens: torch.Tensor, text: torch.Tensor, text_lengths: torch.Tensor, blank: int = 0
) -> torch.Tensor:
    """CTC loss of every exit, from one call of ``torch.nn.functional.ctc_loss``.

    Equals ``espnet2.asr.ctc.CTC`` (``ctc_type: builtin``, ``zero_infinity: true``) exit by exit: the sum
    over the batch divided by its size.

    Args:
        log_probs: (M, B, T, V), M exits.
        olens: frames (B,), the same for every exit.
        text: labels (B, L), padded.
        text_lengths: (B,).
        blank: blank id.

    Returns:
        Loss per exit (M,).
    """
    exits, batch = log_probs.shape[:2]
    losses = torch.nn.functional.ctc_loss(
        log_probs.flatten(0, 1).transpose(0, 1).float(),
        torch.cat([row[:length] for row, length in zip(text, text_lengths, strict=True)]).repeat(exits),
        olens.repeat(exits),
        text_lengths.repeat(exits),
        blank=blank,
        reduction="none",
        zero_infinity=True,
    )
    return losses.view(exits, batch).sum(dim=1) / batch
