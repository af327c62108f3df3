"""The convolutions of ``early_exit_hf`` for ONNX: on a padded batch at once, in which no number is read from a tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from espnet_ee.encoder.base import real_frames


def standardised(xs: torch.Tensor, ilens: torch.Tensor) -> torch.Tensor:
    """Utterances with mean 0 and variance 1: samples (B, L), of which ``ilens`` (B,) are real and the others zero, as they stay."""
    count = ilens[:, None].to(xs.dtype)
    centred = (xs - xs.sum(dim=1, keepdim=True) / count).masked_fill(~real_frames(ilens, xs), 0.0)
    return centred / torch.sqrt(centred.square().sum(dim=1, keepdim=True) / count + 1e-7)


def convolved(
    extractor: nn.Module, subsampling: Sequence[tuple[int, int]], xs: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """What the library's convolutions make of each utterance alone.

    Args:
        extractor: its ``feature_extractor``.
        subsampling: kernel and stride of each convolution.
        xs: samples (B, L), zero where they are padded.
        lengths: of the utterances (B,), each enough for a frame.

    Returns:
        (B, T, C).
    """
    hidden = xs[:, None]
    layers: Sequence[nn.Module] = extractor.conv_layers  # type: ignore[assignment]
    for layer, (kernel, stride) in zip(layers, subsampling, strict=True):
        lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
        norm = getattr(layer, "layer_norm", None)
        if isinstance(norm, nn.GroupNorm):
            hidden = layer.activation(_over_time(norm, layer.conv(hidden), lengths))  # type: ignore[operator]
        else:
            hidden = layer(hidden)
    return hidden.transpose(1, 2)


def _over_time(norm: nn.GroupNorm, hidden: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The group norm of (B, C, T) whose groups are channels, by the ``lengths`` (B,) real frames alone.

    Sums over them are products with ones and zeros: of a minute of audio this is the largest tensor, which masks would copy.
    """
    real = real_frames(lengths, hidden.transpose(1, 2)).to(hidden.dtype)[..., None]
    count = lengths[:, None, None].to(hidden.dtype)
    centred = hidden - hidden @ real / count
    variance = centred.square() @ real / count
    return centred * (torch.rsqrt(variance + norm.eps) * norm.weight[:, None]) + norm.bias[:, None]
