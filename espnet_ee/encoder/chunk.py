"""Chunks: what lets one encoder read whole utterances and, a few frames later than they are said, streams.

A frame of chunk j (C frames each) sees its own chunk and so many frames before it, in the attention and in the convolution,
which finds zeros behind the chunk. So a stream is computed chunk by chunk, from what a :class:`BlockCache` holds, with the
output of a whole utterance under :func:`chunk_mask`; without chunks the model is an offline one. Sources: U2 (arXiv
2012.05481), whose model is trained with chunks drawn by chance and, half of the time, without; the convolution that sees the
rest of its chunk, arXiv 2304.09325.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from espnet_ee.errors import UsageError, UserError
from espnet_ee.values import is_whole

_WHOLE_SHARE = 0.5  # of the training steps, without chunks


def chunk_mask(frames: int, chunk: int, left: int, device: torch.device) -> torch.Tensor:
    """Which frames a frame sees (T, T), row by row: those of its chunk of so many frames, and the ``left`` before that.

    >>> chunk_mask(5, 2, 1, torch.device("cpu")).int().tolist()
    [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 1, 1]]
    """
    places = torch.arange(frames, device=device)
    starts = (places // chunk * chunk)[:, None]
    return (places >= starts - left) & (places < starts + chunk)


class BlockCache:
    """What one block needs of a stream's past: bounded, whatever has passed.

    Args:
        left: frames whose keys and values are kept.
        kernel: of the convolution, which sees half of it before each frame.
    """

    def __init__(self, left: int, kernel: int) -> None:
        self._left, self._before = left, kernel // 2
        self._attended: torch.Tensor | None = None  # keys and values (2, 1, H, <= left, W)
        self._convolved: torch.Tensor | None = None  # (1, D, kernel // 2)

    def attend(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (1, H, T, W) of a chunk, behind those of the frames before it."""
        both = torch.stack([keys, values])
        if self._attended is not None:
            both = torch.cat([self._attended, both], dim=3)
        self._attended = both[:, :, :, max(0, both.size(3) - self._left) :].clone()
        return both[0], both[1]

    def convolve(self, xs: torch.Tensor) -> torch.Tensor:
        """(1, D, T) behind the frames before it that the convolution sees, zeros at first."""
        before = xs.new_zeros(1, xs.size(1), self._before) if self._convolved is None else self._convolved
        whole = torch.cat([before, xs], dim=2)
        self._convolved = whole[:, :, whole.size(2) - self._before :].clone()
        return whole

    @property
    def size(self) -> int:
        """Numbers that are held."""
        return sum(held.numel() for held in (self._attended, self._convolved) if held is not None)


def drawn_chunk(limits: tuple[int, int], step: int) -> int | None:
    """Frames of a chunk for a training step, between the limits, even where ``step`` is 2; half of the time None: no chunks."""
    if torch.rand(()).item() < _WHOLE_SHARE:
        return None
    least, most = limits
    return least + step * int(torch.randint((most - least) // step + 1, ()))


def check_chunks(chunk_range: Sequence[int], left_frames: int, step: int) -> tuple[int, int] | None:
    """Returns the shortest and the longest chunk, None for none.

    Raises:
        UsageError: they are something else; where ``step`` is 2 (blocks see every second frame), odd numbers, too.
    """
    if not is_whole(left_frames, 0):
        raise UsageError(f"encoder_conf: left_frames is {left_frames!r}; give a number of frames, 0 or more")
    if isinstance(chunk_range, (list, tuple)) and not chunk_range:
        return None
    numbers = isinstance(chunk_range, (list, tuple)) and all(map(is_whole, chunk_range))
    if not numbers or len(chunk_range) != 2 or chunk_range[0] > chunk_range[1]:
        raise UsageError(
            f"encoder_conf: chunk_range is {chunk_range!r}; give the frames of the shortest and of the longest chunk that a "
            "training draws, such as [4, 24], or [] for a model that is not to stream"
        )
    if any(frames % step for frames in chunk_range):
        raise UsageError(f"encoder_conf: chunk_range {list(chunk_range)} with half_rate: give even numbers")
    return chunk_range[0], chunk_range[1]


def chunk_of(limits: tuple[int, int] | None, step: int, frame_seconds: float | None, milliseconds: int) -> int:
    """Frames of a chunk that lasts so long.

    Args:
        limits: of the encoder, see :class:`espnet_ee.encoder.base.SegmentEncoder`; so is ``step``.
        step: likewise.
        frame_seconds: length of a frame; None: not known.
        milliseconds: of a chunk.

    Raises:
        UserError: the model was not trained for chunks, or has none of this length.
    """
    if limits is None:
        raise UserError(
            "the model was not trained for chunks, so it cannot stream; train one with encoder_conf: chunk_range, as "
            "conf/train_ee_fast_conformer_streaming.yaml has it"
        )
    if frame_seconds is None:
        raise UserError(
            "the model takes stored features: nobody says how long a chunk is; make it take audio (espnet-ee raw-audio)"
        )
    shortest = step * 1000 * frame_seconds
    times = round(milliseconds / shortest)
    if times < 1 or abs(times * shortest - milliseconds) > 1e-6:
        raise UsageError(f"a chunk of {milliseconds} ms: give a multiple of {shortest:g} ms, this model's shortest chunk")
    return times * step
