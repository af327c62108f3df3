"""Terms of the joint loss: what each exit is trained for, and the exits' weights.

Source: arXiv 2309.09546, eq. (1): L = sum over exits m of w_m * L_m, every w_m = 1 by default. L_m is the sum of the
terms; a new one is one class in a file of its own and one line in ``TERMS``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_ee.errors import UsageError


@dataclass(frozen=True)
class ExitBatch:
    """A batch as all exits see it: M exits.

    Attributes:
        layers: exit layers, rising.
        hidden: hidden states after each exit's norm, M times (B, T, D).
        logits: (M, B, T, V).
        olens: real frames (B,).
        text: labels (B, L), padded.
        text_lengths: (B,).
    """

    layers: Sequence[int]
    hidden: Sequence[torch.Tensor]
    logits: torch.Tensor
    olens: torch.Tensor
    text: torch.Tensor
    text_lengths: torch.Tensor

    @cached_property
    def log_probs(self) -> torch.Tensor:
        """Of the logits, natural (M, B, T, V)."""
        return self.logits.log_softmax(dim=-1)


class Term(torch.nn.Module):
    """One term of the joint loss; it may have parameters of its own.

    Args:
        model: the model it is made for, as far as that is built.
    """

    def __init__(self, model: ESPnetASRModel) -> None:
        super().__init__()

    def forward(self, batch: ExitBatch) -> torch.Tensor:
        """The term's value at every exit (M,), the mean over the batch's utterances."""
        raise NotImplementedError


class CTCTerm(Term):
    """CTC at every exit; see :func:`exits_ctc_loss`."""

    def __init__(self, model: ESPnetASRModel) -> None:
        super().__init__(model)
        self.blank = model.blank_id

    def forward(self, batch: ExitBatch) -> torch.Tensor:
        """See :class:`Term`."""
        return exits_ctc_loss(batch.log_probs, batch.olens, batch.text, batch.text_lengths, self.blank)


TERMS: dict[str, type[Term]] = {"ctc": CTCTerm}


class JointTerms(torch.nn.Module):
    """The weighted sum of terms that ``model_conf: exit_terms`` asks for.

    Args:
        weights: by name in ``TERMS``.
        model: see :class:`Term`.

    Raises:
        UsageError: no such term, or a weight that is no positive number.
    """

    def __init__(self, weights: Mapping[str, float], model: ESPnetASRModel) -> None:
        super().__init__()
        if not isinstance(weights, Mapping) or not weights:
            raise UsageError(f"model_conf: exit_terms {weights!r} is not a table of weights such as {{ctc: 1.0}}")
        for name, weight in weights.items():
            if name not in TERMS:
                raise UsageError(f"model_conf: exit_terms: {name!r} is not one of {', '.join(sorted(TERMS))}")
            if type(weight) not in (int, float) or not 0 < weight < math.inf:
                raise UsageError(f"model_conf: exit_terms: {name}: {weight!r} is not a positive number")
        self.weights = dict(weights)
        self.terms = torch.nn.ModuleDict({name: TERMS[name](model) for name in weights})

    def forward(self, batch: ExitBatch) -> torch.Tensor:
        """The joint loss of every exit (M,)."""
        return sum(weight * self.terms[name](batch) for name, weight in self.weights.items())


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
