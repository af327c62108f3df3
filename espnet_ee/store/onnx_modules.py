"""What is traced of a model for ONNX: the segments of its encoder with their heads, from normalised features on or from hidden
states. Lengths stay tensors, so that one graph serves every length and batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from espnet2.asr.espnet_model import ESPnetASRModel
from espnet2.layers.global_mvn import GlobalMVN
from espnet2.layers.utterance_mvn import UtteranceMVN

from espnet_ee.encoder.base import SegmentEncoder, real_frames
from espnet_ee.errors import UserError
from espnet_ee.model.deep_heads import LSTMHead
from espnet_ee.model.heads import exit_heads_of
from espnet_ee.model.inputs import input_width

Tensors = tuple[torch.Tensor, ...]


class Normalisation(torch.nn.Module):
    """ESPnet's mean and variance normalisation, of the real frames alone; what is padded becomes zero.

    Args:
        stock: ``model.normalize``.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, stock: GlobalMVN | UtteranceMVN | None) -> None:
        super().__init__()
        self.whole, self.means, self.variances = isinstance(stock, GlobalMVN), False, False
        if stock is None:
            return
        if not isinstance(stock, (GlobalMVN, UtteranceMVN)):
            raise UserError(f"normalize: {type(stock).__name__} has no ONNX form; use global_mvn or utterance_mvn")
        self.means, self.variances, self.eps = stock.norm_means, stock.norm_vars, stock.eps
        if isinstance(stock, GlobalMVN):
            self.register_buffer("mean", stock.mean.float())
            self.register_buffer("std", stock.std.float())

    def forward(self, xs: torch.Tensor, ilens: torch.Tensor) -> torch.Tensor:
        """Normalises features (B, L, F) of which ``ilens`` (B,) frames are real."""
        padding = ~real_frames(ilens, xs)[..., None]
        mean, std = (self.mean, self.std) if self.whole else self.statistics(xs, ilens, padding)
        xs = xs - mean if self.means else xs
        return (xs / std if self.variances else xs).masked_fill(padding, 0.0)

    def statistics(self, xs: torch.Tensor, ilens: torch.Tensor, padding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each utterance (B, 1, F)."""
        count = ilens.clamp(min=1)[:, None, None].to(xs.dtype)
        mean = xs.masked_fill(padding, 0.0).sum(dim=1, keepdim=True) / count
        if not self.variances:
            return mean, mean
        centred = (xs - mean).masked_fill(padding, 0.0)
        return mean, (centred.square().sum(dim=1, keepdim=True) / count).sqrt().clamp(min=self.eps)


class Segment(torch.nn.Module):
    """The blocks between two exits with the head of the upper one.

    Attributes:
        least: length of the shortest input.
        step: what the lengths of examples are multiples of, over the least: several frames must come of them.
        width: dimension of the input's frames.

    Args:
        model: in evaluation mode.
        below: the exit layer it begins above; 0: features come in, and the subsampling is a part of it.
    """

    least, step = 1, 1

    inputs = ("hidden", "lens")
    outputs = ("hidden_out", "lens_out", "label", "log_confidence", "entropy", "log_probs")

    def __init__(self, model: ESPnetASRModel, below: int) -> None:
        super().__init__()
        self.encoder: SegmentEncoder = model.encoder
        self.layer = next(layer for layer in self.encoder.exit_layers if layer > below)
        self.below, self.head = below, exit_heads_of(model).by_layer[self.layer]
        self.width = self.encoder.packed_size(below)
        if isinstance(self.head, LSTMHead):
            raise UserError(
                f"exit {self.layer}: a head of kind lstm has no ONNX form here: it packs an utterance by its length"
            )

    def forward(self, hidden: torch.Tensor, lens: torch.Tensor) -> Tensors:
        """Computes the segment.

        Args:
            hidden: what the segment below gives of hidden states (B, T, D').
            lens: real frames (B,), one or more each.

        Returns:
            Hidden states (B, T, D'), lens (B,); of each frame best token, its log-probability, entropy in nats (B, T); and
            log-probabilities (B, T, V).
        """
        output = self.encoder.advance(self.encoder.unpacked(hidden, lens, self.below))
        log_probs = self.head(output.hs, lens).log_softmax(dim=-1)
        log_confidence, label = log_probs.max(dim=-1)
        entropy = -(log_probs.exp() * log_probs).sum(dim=-1)
        # ONNX wants outputs that are no inputs.
        return self.encoder.packed(output.state), lens.clone(), label, log_confidence, entropy, log_probs


class FirstSegment(Segment):
    """The first segment with what stands before it: normalisation, a linear layer if there is one, and subsampling.

    Args:
        model: in evaluation mode.
    """

    inputs = ("x", "x_lens")

    def __init__(self, model: ESPnetASRModel) -> None:
        super().__init__(model, 0)
        self.normalisation = Normalisation(model.normalize)
        self.width, self.least = input_width(model), self.encoder.min_frames
        self.of_samples = self.encoder.takes == "samples"
        self.step = self.encoder.stride if self.of_samples else 1
        preencoder = getattr(model, "preencoder", None)
        self.linear = None if preencoder is None else preencoder.linear_out

    def forward(self, x: torch.Tensor, x_lens: torch.Tensor) -> Tensors:
        """Computes features (B, L, F), or samples (B, L, 1), of which ``x_lens`` (B,) are real; L is ``least`` or more."""
        lens = self.encoder.frames_of(x_lens.clamp(min=self.least))
        features = self.normalisation(x, x_lens)
        if self.linear is not None:
            features = self.linear(features).masked_fill(~real_frames(x_lens, x)[..., None], 0.0)
        features = features[:, :, 0] if self.of_samples else features
        return super().forward(self.encoder.traced_embed(features, x_lens), lens)


def segments_of(model: ESPnetASRModel) -> Mapping[int, Segment]:
    """The segments of a model by exit layer, rising.

    Raises:
        UserError: a part of it has no ONNX form; says which.
    """
    encoder = model.encoder
    below = (0, *encoder.exit_layers[:-1])
    return {
        layer: FirstSegment(model).eval() if not start else Segment(model, start).eval()
        for start, layer in zip(below, encoder.exit_layers, strict=True)
    }
