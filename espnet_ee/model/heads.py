"""CTC heads of the exits: a linear layer per exit, or one for all.

The final exit's head is ESPnet's own ``model.ctc``, under its stock name, so that stock tools find it.
A new kind of head is one class in a file of its own and one line in ``HEADS`` (:mod:`espnet_ee.model.head_choices`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from espnet2.asr.espnet_model import ESPnetASRModel

from espnet_ee.compute import MacTable, Parabola
from espnet_ee.model.cluster_heads import cluster_heads_of
from espnet_ee.model.preencoder import with_preencoder

# The evidence is one pass over what a head gives: the sum of exponentials and the entropy, one multiply-accumulate each
# per frame and token. Comparing with a threshold costs nothing beside it.
EVIDENCE_MACS = 2


class ExitHead(torch.nn.Module, ABC):
    """What turns an exit's hidden states into logits, and never lets a frame see padding."""

    vocabulary: int

    @abstractmethod
    def forward(self, hs: torch.Tensor, olens: torch.Tensor) -> torch.Tensor:
        """Logits, not yet normalised.

        Args:
            hs: hidden states after the exit's norm (B, T, D).
            olens: real frames per utterance (B,).

        Returns:
            (B, T, V)
        """

    def stock_state(self) -> dict[str, torch.Tensor] | None:
        """The parameters under the names of ESPnet's ``CTC``; None: the head has no stock form."""
        return None

    @abstractmethod
    def macs(self) -> Parabola:
        """What it costs, without the evidence, by encoder frames."""


class LinearHead(ExitHead):
    """One linear layer, its parameters named as in ESPnet's ``CTC`` (arXiv 2309.09546).

    Args:
        linear: the layer: one of its own, or that of ESPnet's ``CTC``, which stays a part of its model.
        dropout_rate: of the hidden states, while the layer is in training.
    """

    def __init__(self, linear: torch.nn.Linear, dropout_rate: float) -> None:
        super().__init__()
        self.ctc_lo, self.vocabulary, self.dropout_rate = linear, linear.out_features, dropout_rate

    def forward(self, hs: torch.Tensor, olens: torch.Tensor) -> torch.Tensor:
        return self.ctc_lo(torch.nn.functional.dropout(hs, self.dropout_rate, self.ctc_lo.training))

    def stock_state(self) -> dict[str, torch.Tensor]:
        return self.state_dict()

    def macs(self) -> Parabola:
        per_frame = self.ctc_lo.in_features * self.vocabulary
        return Parabola(per_frame, per_frame)


def separate_head(size: int, vocabulary: int, dropout_rate: float) -> ExitHead:
    """A linear layer of the exit's own (arXiv 2309.09546)."""
    return LinearHead(torch.nn.Linear(size, vocabulary), dropout_rate)


@dataclass(frozen=True)
class ExitHeads:
    """Which head serves which exit.

    Attributes:
        by_layer: by exit layer, rising.
    """

    by_layer: Mapping[int, ExitHead]

    def logits(self, layer: int, hs: torch.Tensor, olens: torch.Tensor) -> torch.Tensor:
        """What the head of the exit after block ``layer`` gives: hs (B, T, D), olens (B,) -> (B, T, V)."""
        return self.by_layer[layer](hs, olens)


def exit_heads_of(model: ESPnetASRModel) -> ExitHeads:
    """The heads of a model with an early-exit encoder: of ours, or of ESPnet's own, whose one head serves every exit.

    A conditioned encoder, whose blocks read them, is given them, too.
    """
    own, final = getattr(model, "exit_ctc", {}), LinearHead(model.ctc.ctc_lo, model.ctc.dropout_rate)
    layers = model.encoder.exit_layers
    heads = ExitHeads({layer: own[str(layer)] if str(layer) in own else final for layer in layers})
    if model.encoder.conditioned:
        model.encoder.heads = heads
    return heads


def mac_table(model: ESPnetASRModel) -> MacTable:
    """What a model costs: its encoder's table (with a linear layer before it) and the heads with the evidence read from them."""
    heads, clusters = {}, cluster_heads_of(model)
    for layer, head in exit_heads_of(model).by_layer.items():
        # A conditioned encoder computes the head at every exit, and counts it.
        cost, evidence = Parabola(0, 0) if model.encoder.conditioned else head.macs(), EVIDENCE_MACS * head.vocabulary
        if layer in clusters:
            evidence += (clusters[layer].in_features + EVIDENCE_MACS) * clusters[layer].out_features
        heads[layer] = Parabola(cost.at_one + evidence, cost.step + evidence, cost.growth)
    return replace(with_preencoder(model.encoder.macs(), getattr(model, "preencoder", None)), heads=heads)
