"""``encoder: early_exit_fast_conformer``: a conformer whose shallow exits are cheap, in plain torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import cast

import torch
from torch import nn

from espnet_ee.encoder.base import EncoderState, SegmentEncoder, check_counts, check_rates, left_out, real_frames
from espnet_ee.encoder.chunk import BlockCache, check_chunks, chunk_mask, drawn_chunk
from espnet_ee.encoder.fast_blocks import DepthwiseSubsampling, FastConformerBlock, check_sizes, rotary
from espnet_ee.encoder.half_rate import HalfRateInput, HalfRateOutput, check_half_rate, full_rate
from espnet_ee.subsampling import FAST, Convolutions, padded, reach


@dataclass(frozen=True)
class FastCarry:
    """What the blocks need beside the hidden states.

    Attributes:
        cosines: of the rotary positions (T, D/H).
        sines: likewise.
        real: True on real frames (B, T, 1), or None where every frame is real: then no block needs to mask.
        half: hidden states at half rate (B, ceil(T/2), D), where the encoder stands between their first and last block.
        chunks: which frames a frame sees (T, T), see :func:`espnet_ee.encoder.chunk.chunk_mask`; None: all.
        chunk: frames of a chunk, where there are chunks.
    """

    cosines: torch.Tensor
    sines: torch.Tensor
    real: torch.Tensor | None
    half: torch.Tensor | None = None
    chunks: torch.Tensor | None = None
    chunk: int | None = None

    def select(self, rows: torch.Tensor, frames: int) -> FastCarry:
        real = None if self.real is None else self.real[rows, :frames]
        half = None if self.half is None else self.half[rows, : (frames + 1) // 2]
        real = None if real is None or bool(real.all()) else real
        chunks = None if self.chunks is None else self.chunks[:frames, :frames]
        return FastCarry(self.cosines[:frames], self.sines[:frames], real, half, chunks, self.chunk)

    @property
    def at_half_rate(self) -> FastCarry:
        """What the blocks at half rate need: of every second frame, the first included."""
        real = None if self.real is None else self.real[:, ::2]
        chunks = None if self.chunks is None else self.chunks[::2, ::2]
        chunk = None if self.chunk is None else self.chunk // 2
        return FastCarry(self.cosines[::2], self.sines[::2], real, chunks=chunks, chunk=chunk)

    @cached_property
    def seen(self) -> torch.Tensor | None:
        """Which keys a query sees: every real frame (B, 1, 1, T), of those that its chunk may see (B, 1, T, T)."""
        real = None if self.real is None else self.real.transpose(1, 2)[:, None]
        if self.chunks is None or real is None:
            return self.chunks if real is None else real
        # A padded frame sees itself: of nothing the attention would make NaN, which spreads.
        return (self.chunks & real) | torch.eye(len(self.chunks), dtype=torch.bool, device=real.device)


class EarlyExitFastConformerEncoder(SegmentEncoder):
    """A conformer with depthwise-separable subsampling, rotary positions and fused attention, computed segment by segment.

    The outputs and olens of an utterance never depend on its neighbours in the batch. With ESPnet's subsampling a quarter
    of twelve blocks' time is spent before the first; here it is a fiftieth or less.

    Args:
        input_size: feature dimension.
        exit_layers: 1-based numbers of the blocks that an exit follows; the last block is one of them.
        output_size: D.
        attention_heads: heads of the attention.
        linear_units: units of the feed-forward modules.
        num_blocks: blocks.
        subsampling: frames of input to one of the encoder: 4, 6 or 8. CTC needs as many frames as tokens and repeats: 8
            wants BPE.
        subsampling_channels: of its convolutions.
        cnn_module_kernel: of the blocks' convolution over time, odd.
        convolution_norm: ``"batch"`` or ``"layer"``; neither sees padding.
        dropout_rate: of the modules' outputs, and within feed-forward modules.
        positional_dropout_rate: of the input to the first block.
        attention_dropout_rate: of the attention weights.
        stochastic_depth_rate: chance that the last block is skipped in a training step; it grows with depth from 0 before
            the first (arXiv 1603.09382).
        half_rate: the first and the last block that see every second frame only, such as [5, 10]; none: []. The state
            before them is added to what comes out (a temporal U-Net). An exit among them reads that sum, too, at the full
            rate, by a linear layer of its own.
        chunk_range: for a model that can stream, the frames of the shortest and of the longest chunk that half of the
            training steps draw; then the subsampling sees no feature after its frame's own. None: [].
            (:mod:`espnet_ee.encoder.chunk`)
        left_frames: frames before its chunk that a frame of a chunk sees.

    Raises:
        UsageError: the exits do not fit, or the sizes do not fit together.

    Example:
        >>> encoder = EarlyExitFastConformerEncoder(80, [1, 2], output_size=8, attention_heads=2, num_blocks=2, subsampling=4)
        >>> exits = encoder.iter_exits(torch.randn(3, 64, 80), torch.tensor([64, 50, 20]))
        >>> first = next(exits)  # block 2 has not been computed
        >>> first.layer, tuple(first.hs.shape), first.olens.tolist()
        (1, (3, 15, 8), [15, 11, 4])
    """

    def __init__(
        self,
        input_size: int,
        exit_layers: list[int] = [],  # noqa: B006 - ESPnet shows it in --print_config
        output_size: int = 256,
        attention_heads: int = 4,
        linear_units: int = 1024,
        num_blocks: int = 12,
        subsampling: int = 4,
        subsampling_channels: int = 64,
        cnn_module_kernel: int = 15,
        convolution_norm: str = "batch",
        dropout_rate: float = 0.1,
        positional_dropout_rate: float = 0.1,
        attention_dropout_rate: float = 0.1,
        stochastic_depth_rate: float = 0.0,
        half_rate: list[int] = [],  # noqa: B006 - likewise
        chunk_range: list[int] = [],  # noqa: B006 - likewise
        left_frames: int = 64,
    ) -> None:
        super().__init__()
        check_counts(
            1, output_size=output_size, attention_heads=attention_heads, linear_units=linear_units, num_blocks=num_blocks
        )
        check_counts(1, subsampling_channels=subsampling_channels, cnn_module_kernel=cnn_module_kernel)
        check_rates(dropout_rate=dropout_rate, positional_dropout_rate=positional_dropout_rate)
        check_rates(attention_dropout_rate=attention_dropout_rate, stochastic_depth_rate=stochastic_depth_rate)
        check_sizes(output_size, attention_heads, cnn_module_kernel, subsampling, convolution_norm)
        self.input_size = input_size
        self.place_exits(exit_layers, num_blocks)
        self.size, self.head_width = output_size, output_size // attention_heads
        self.factor, self.stochastic_depth_rate = subsampling, stochastic_depth_rate
        self.embed = DepthwiseSubsampling(input_size, output_size, subsampling, subsampling_channels)
        self.embed_dropout = nn.Dropout(positional_dropout_rate)
        self.half_rate = check_half_rate(half_rate, num_blocks)
        self.chunk_step = 2 if self.half_rate else 1
        self.chunk_limits = check_chunks(chunk_range, left_frames, self.chunk_step)
        self.left_frames, self.kernel = left_frames, cnn_module_kernel
        self.look_back = reach(FAST[subsampling]) - self.min_frames  # features before its own that a frame sees
        self.new_block = partial(
            FastConformerBlock,
            output_size,
            attention_heads,
            linear_units,
            cnn_module_kernel,
            convolution_norm,
            dropout_rate,
            attention_dropout_rate,
        )
        self.encoders = nn.ModuleList(self.new_block() for _ in range(num_blocks))
        if self.half_rate:
            first, last = self.half_rate
            self.frame_period, self.half_rate_input = 2, HalfRateInput(output_size)
            within = [layer for layer in self.exit_layers if first <= layer < last]
            self.half_rate_outputs = nn.ModuleDict({str(layer): HalfRateOutput(output_size) for layer in (*within, last)})

    def output_size(self) -> int:
        return self.size

    @property
    def subsampling(self) -> Convolutions:
        return FAST[self.factor] if self.chunk_limits is None else padded(FAST[self.factor])

    def embed_frames(self, xs: torch.Tensor, ilens: torch.Tensor) -> EncoderState:
        hidden = self.embed_features(xs)
        olens = self.frames_of(ilens).clamp(max=hidden.size(1))
        chunk = drawn_chunk(self.chunk_limits, self.chunk_step) if self.training and self.chunk_limits else self.chunk
        return EncoderState(hidden, olens, self.chunked_carry(hidden, olens, chunk))

    def embed_features(self, xs: torch.Tensor) -> torch.Tensor:
        """What goes into the first block (B, T, D), of features (B, L, F); for what is before the first frame, that frame stands."""
        if self.look_back:
            xs = torch.cat([xs[:, :1].expand(-1, self.look_back, -1), xs], dim=1)
        return self.stream_embed(xs)

    def stream_embed(self, xs: torch.Tensor) -> torch.Tensor:
        """What goes into the first block (1, n, D), of features (1, ``look_back`` + n * ``stride``, F) of a stream."""
        return self.embed_dropout(self.embed(xs) * math.sqrt(self.size))

    def chunked_carry(self, hidden: torch.Tensor, olens: torch.Tensor, chunk: int | None) -> FastCarry:
        """What the blocks need beside the hidden states (B, T, D); see :class:`SegmentEncoder` for ``chunk``."""
        carry = self.traced_carry(hidden, olens)
        mask = None if chunk is None else chunk_mask(hidden.size(1), chunk, self.left_frames, hidden.device)
        return replace(carry, real=carry.real if int(olens.min()) < hidden.size(1) else None, chunks=mask, chunk=chunk)

    def block(self, number: int, state: EncoderState) -> EncoderState:
        carry, (first, last) = cast(FastCarry, state.carry), self.half_rate or (0, 0)
        if number == first:
            carry = replace(carry, half=self.half_rate_input(state.hidden, carry.real))
        if carry.half is None:
            assert not first < number <= last, f"block {number} is at half rate, the state is not"
            return replace(state, hidden=self.block_output(number, state.hidden, carry))
        state = replace(state, carry=replace(carry, half=self.block_output(number, carry.half, carry.at_half_rate)))
        if number < last:
            return state
        return replace(state, hidden=self.exit_hidden(last, state), carry=replace(carry, half=None))

    def block_output(self, number: int, hidden: torch.Tensor, carry: FastCarry) -> torch.Tensor:
        """What block ``number`` makes of (B, T, D): the same where it is skipped, in training, by chance."""
        share = self.depth_share(number)
        block = self.encoders[number - 1]
        compute = partial(block, hidden, carry.cosines, carry.sines, carry.real, carry.seen, share, carry.chunk)
        return compute() if share else left_out(hidden, compute)

    def depth_share(self, number: int) -> float:
        """What the modules of a block count for: 0 where the block is skipped, more than 1 where it could have been."""
        rate = self.stochastic_depth_rate * number / len(self.encoders) if self.training else 0.0
        if not rate:
            return 1.0
        return 0.0 if torch.rand(()).item() < rate else 1.0 / (1.0 - rate)

    def exit_hidden(self, layer: int, state: EncoderState) -> torch.Tensor:
        half = cast(FastCarry, state.carry).half
        if half is None:
            return state.hidden
        return state.hidden + self.half_rate_outputs[str(layer)](half, state.hidden.size(1))

    def exit_norm_of(self, layer: int) -> None:
        """None: every block ends in a norm of its own."""

    # --- a stream -------------------------------------------------------------------------------------------------------

    def new_cache(self) -> BlockCache:
        """What a block needs of a stream's past, at its start."""
        return BlockCache(self.left_frames, self.kernel)

    def stream_block(self, number: int, hidden: torch.Tensor, first: int, cache: BlockCache) -> torch.Tensor:
        """Computes one block, at full rate, for a stream's next chunk: (1, n, D), which begins with the stream's frame ``first``.

        The chunk is added to ``cache``, which is the block's own.
        """
        cosines, sines = rotary(hidden.size(1), self.head_width, hidden, first)
        return self.encoders[number - 1](hidden, cosines, sines, None, None, cache=cache)

    # --- for ONNX -------------------------------------------------------------------------------------------------------

    def traced_embed(self, xs: torch.Tensor, ilens: torch.Tensor) -> torch.Tensor:
        return self.embed_features(xs)

    def traced_carry(self, hidden: torch.Tensor, olens: torch.Tensor) -> FastCarry:
        return FastCarry(*rotary(hidden.size(1), self.head_width, hidden), real_frames(olens, hidden)[..., None])

    def packed_size(self, layer: int) -> int:
        """An exit among the blocks at half rate is followed by both."""
        first, last = self.half_rate or (1, 0)
        return 2 * self.size if first <= layer < last else self.size

    def packed(self, state: EncoderState) -> torch.Tensor:
        half = cast(FastCarry, state.carry).half
        return state.hidden if half is None else torch.cat([state.hidden, full_rate(half, state.hidden.size(1))], dim=2)

    def unpacked(self, packed: torch.Tensor, olens: torch.Tensor, layer: int) -> EncoderState:
        hidden, half = packed[:, :, : self.size], packed[:, ::2, self.size :]
        carry = self.traced_carry(hidden, olens)
        return EncoderState(hidden, olens, replace(carry, half=half) if half.size(2) else carry, layer)
