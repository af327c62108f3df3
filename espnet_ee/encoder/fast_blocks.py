"""The parts of the fast conformer, in plain torch: what a step costs is one matrix product after another.

Sources: depthwise-separable subsampling, FastConformer (arXiv 2305.05084); the block, Conformer (arXiv 2005.08100);
rotary positions, RoFormer (arXiv 2104.09864). Pointwise convolutions are linear layers, so that they quantise as those do.
"""

from __future__ import annotations

import torch
from torch import nn

from espnet_ee.encoder.chunk import BlockCache
from espnet_ee.errors import UsageError
from espnet_ee.subsampling import FAST, subsampled


class DepthwiseSubsampling(nn.Module):
    """Fewer frames by convolutions without padding, all but the first depthwise-separable, then a linear layer.

    Args:
        input_size: feature dimension F.
        output_size: D.
        factor: 4, 6 or 8.
        channels: C of the convolutions.
    """

    def __init__(self, input_size: int, output_size: int, factor: int, channels: int) -> None:
        super().__init__()
        (kernel, stride), *others = FAST[factor]
        self.first = nn.Conv2d(1, channels, kernel, stride)
        self.depthwise = nn.ModuleList(nn.Conv2d(channels, channels, k, s, groups=channels) for k, s in others)
        self.pointwise = nn.ModuleList(nn.Linear(channels, channels) for _ in others)
        self.out = nn.Linear(channels * subsampled(input_size, FAST[factor]), output_size)

    def forward(self, xs: torch.Tensor) -> torch.Tensor:
        """Subsamples (B, L, F) to (B, T, D); a frame sees nothing beyond its own stretch of the input."""
        xs = self.first(xs[:, None]).relu()  # (B, C, T, F)
        for depthwise, pointwise in zip(self.depthwise, self.pointwise, strict=True):
            xs = pointwise(depthwise(xs).permute(0, 2, 3, 1)).relu().permute(0, 3, 1, 2)
        return self.out(xs.permute(0, 2, 1, 3).flatten(2))


def rotary(frames: int, width: int, like: torch.Tensor, first: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (T, width) of the rotary positions from ``first`` on; ``like`` gives device and type."""
    frequencies = 10000.0 ** (-torch.arange(0, width, 2, device=like.device, dtype=torch.float32) / width)
    angles = torch.arange(first, first + frames, device=like.device, dtype=torch.float32)[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotated(xs: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Turns (B, H, T, W) by its positions."""
    left, right = xs.chunk(2, dim=-1)
    return xs * cosines + torch.cat([-right, left], dim=-1) * sines


class RotaryAttention(nn.Module):
    """Self-attention with one product for queries, keys and values, and rotary positions.

    Args:
        size: D.
        heads: H; D/H must be even.
        dropout: of the attention weights.
    """

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)

    def forward(
        self,
        xs: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        mask: torch.Tensor | None,
        cache: BlockCache | None = None,
    ) -> torch.Tensor:
        """Attends within (B, T, D).

        Args:
            xs: (B, T, D).
            cosines: (T, D/H), of :func:`rotary`.
            sines: (T, D/H).
            mask: which keys a query sees, True: it does; (B, 1, T, T) or what is broadcast to it; None: all.
            cache: of a stream, whose next frames these are: they see those that it holds, too.
        """
        batch, frames, size = xs.shape
        queries, keys, values = self.qkv(xs).view(batch, frames, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys = rotated(queries, cosines, sines), rotated(keys, cosines, sines)
        if cache is not None:
            keys, values = cache.attend(keys, values)
        dropout = self.dropout if self.training else 0.0
        mixed = nn.functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout)
        return self.out(mixed.transpose(1, 2).reshape(batch, frames, size))


class MaskedBatchNorm(nn.Module):
    """Batch normalisation of (B, T, D) whose statistics are those of the real frames alone.

    Args:
        size: D.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    momentum, eps = 0.1, 1e-5

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.register_buffer("running_mean", torch.zeros(size))
        self.register_buffer("running_var", torch.ones(size))

    def forward(self, xs: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
        """Normalises (B, T, D); ``real`` is True on real frames (B, T, 1), None: all are."""
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance = self.statistics(xs.float(), real)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return xs * scale.to(xs.dtype) + (self.bias - mean * scale).to(xs.dtype)

    def statistics(self, xs: torch.Tensor, real: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance (D,) of the real frames; moves the running ones towards them."""
        weights = torch.ones_like(xs[..., :1]) if real is None else real.to(xs.dtype)
        count = weights.sum().clamp(min=1)
        mean = (xs * weights).sum(dim=(0, 1)) / count
        variance = ((xs - mean).square() * weights).sum(dim=(0, 1)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)
        return mean, variance


class FrameNorm(nn.LayerNorm):
    """Layer normalisation under the interface of :class:`MaskedBatchNorm`: it sees one frame, so no padding."""

    def forward(self, xs: torch.Tensor, real: torch.Tensor | None = None) -> torch.Tensor:
        """Normalises every frame of (B, T, D)."""
        return super().forward(xs)


CONVOLUTION_NORMS: dict[str, type[nn.Module]] = {"batch": MaskedBatchNorm, "layer": FrameNorm}


class ConvolutionModule(nn.Module):
    """Conformer's convolution module, whose depthwise convolution sees zeros where an utterance is padded.

    Args:
        size: D.
        kernel: odd.
        norm: a key of ``CONVOLUTION_NORMS``.
    """

    def __init__(self, size: int, kernel: int, norm: str) -> None:
        super().__init__()
        self.before = kernel // 2
        self.expand = nn.Linear(size, 2 * size)
        self.depthwise = nn.Conv1d(size, size, kernel, padding=self.before, groups=size)
        self.norm = CONVOLUTION_NORMS[norm](size)
        self.out = nn.Linear(size, size)

    def forward(
        self, xs: torch.Tensor, real: torch.Tensor | None, chunk: int | None = None, cache: BlockCache | None = None
    ) -> torch.Tensor:
        """Convolves (B, T, D) over time.

        Args:
            xs: (B, T, D).
            real: True on real frames (B, T, 1); None: all are.
            chunk: frames of a chunk beyond which a frame sees nothing; None: it sees both sides.
            cache: of a stream, whose next chunk this is.
        """
        xs = nn.functional.glu(self.expand(xs))
        if real is not None:
            xs = xs.masked_fill(~real, 0.0)
        xs = xs.transpose(1, 2)
        if cache is not None:
            xs = self.depthwise(cache.convolve(xs))[:, :, self.before :]
        else:
            xs = self.depthwise(xs) if chunk is None else self.by_chunks(xs, chunk)
        return self.out(nn.functional.silu(self.norm(xs.transpose(1, 2), real)))

    def by_chunks(self, xs: torch.Tensor, chunk: int) -> torch.Tensor:
        """Convolves (B, D, T) over time: a frame sees the frames before it, and after it the rest of its chunk."""
        batch, _, frames = xs.shape
        count = -(-frames // chunk)
        windows = nn.functional.pad(xs, (self.before, count * chunk - frames)).unfold(2, self.before + chunk, chunk)
        chunks = self.depthwise(windows.transpose(1, 2).flatten(0, 1))[:, :, self.before :]  # (B * count, D, chunk)
        return chunks.unflatten(0, (batch, count)).transpose(1, 2).flatten(2)[:, :, :frames]


class FeedForward(nn.Sequential):
    """Two linear layers with a swish between them.

    Args:
        size: D.
        units: of the inner layer.
        dropout: after the swish.
    """

    def __init__(self, size: int, units: int, dropout: float) -> None:
        super().__init__(nn.Linear(size, units), nn.SiLU(), nn.Dropout(dropout), nn.Linear(units, size))


class FastConformerBlock(nn.Module):
    """Half a feed-forward module, attention, convolution, half a feed-forward module, each behind a norm; a norm at the end.

    Args:
        size: D.
        heads: of the attention.
        units: of the feed-forward modules.
        kernel: of the convolution.
        norm: a key of ``CONVOLUTION_NORMS``.
        dropout: of every module's output and within the feed-forward modules.
        attention_dropout: of the attention weights.
    """

    def __init__(
        self,
        size: int,
        heads: int,
        units: int,
        kernel: int,
        norm: str,
        dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(5))
        self.feed_forward_in = FeedForward(size, units, dropout)
        self.attention = RotaryAttention(size, heads, attention_dropout)
        self.convolution = ConvolutionModule(size, kernel, norm)
        self.feed_forward_out = FeedForward(size, units, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        xs: torch.Tensor,
        cosines: torch.Tensor,
        sines: torch.Tensor,
        real: torch.Tensor | None,
        seen: torch.Tensor | None,
        share: float = 1.0,
        chunk: int | None = None,
        cache: BlockCache | None = None,
    ) -> torch.Tensor:
        """Computes (B, T, D) from (B, T, D).

        Args:
            xs: (B, T, D).
            cosines: (T, D/H), of :func:`rotary`.
            sines: (T, D/H).
            real: True on real frames (B, T, 1); None: all are.
            seen: which keys a query sees (B, 1, T or 1, T); None: all.
            share: what the modules' outputs are multiplied by (stochastic depth).
            chunk: frames of a chunk beyond which the convolution sees nothing; None: there are none.
            cache: of a stream, whose next chunk this is.
        """
        half = share / 2
        xs = xs + half * self.dropout(self.feed_forward_in(self.norms[0](xs)))
        xs = xs + share * self.dropout(self.attention(self.norms[1](xs), cosines, sines, seen, cache))
        xs = xs + share * self.dropout(self.convolution(self.norms[2](xs), real, chunk, cache))
        xs = xs + half * self.dropout(self.feed_forward_out(self.norms[3](xs)))
        return self.norms[4](xs)


def check_sizes(output_size: int, heads: int, kernel: int, factor: int, norm: str) -> None:
    """Raises UsageError for settings that do not fit together."""
    if factor not in tuple(FAST):
        raise UsageError(f"encoder_conf: subsampling {factor!r}: choose {', '.join(map(str, FAST))}")
    if output_size % heads or (output_size // heads) % 2:
        raise UsageError(
            f"encoder_conf: output_size {output_size} and attention_heads {heads}: a head's width must be even and whole"
        )
    if kernel % 2 == 0:
        raise UsageError(f"encoder_conf: cnn_module_kernel {kernel}: give an odd number")
    if norm not in tuple(CONVOLUTION_NORMS):
        raise UsageError(f"encoder_conf: convolution_norm {norm!r}: choose {' or '.join(CONVOLUTION_NORMS)}")
