"""What a term of the joint loss is, and what it sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from espnet2.asr.espnet_model import ESPnetASRModel


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
        decoders: attention decoders by exit layer; none of a model of CTC heads alone.
        stats: what a term reports beside its value, by name; ESPnet's trainer shows the same names for every batch.
    """

    layers: Sequence[int]
    hidden: Sequence[torch.Tensor]
    logits: torch.Tensor
    olens: torch.Tensor
    text: torch.Tensor
    text_lengths: torch.Tensor
    decoders: Mapping[int, torch.nn.Module] = field(default_factory=dict)
    stats: dict[str, torch.Tensor] = field(default_factory=dict)

    @cached_property
    def log_probs(self) -> torch.Tensor:
        """Of the logits, natural (M, B, T, V)."""
        return self.logits.log_softmax(dim=-1)


class Term(torch.nn.Module):
    """One term of the joint loss; it may have parameters of its own.

    Attributes:
        copies: how often it wants every utterance in a training batch, each time with other masks.

    Args:
        model: the model it is made for, as far as that is built.
    """

    copies: int = 1

    def __init__(self, model: ESPnetASRModel) -> None:
        super().__init__()

    def forward(self, batch: ExitBatch) -> torch.Tensor:
        """The term's value at every exit (M,), the mean over the batch's utterances."""
        raise NotImplementedError
