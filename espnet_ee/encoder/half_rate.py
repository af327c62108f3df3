"""Every second frame, and back: what lets blocks in the middle of an encoder, or beside it, cost half.

Source: the temporal U-Net of Squeezeformer (arXiv 2206.00888), as WeNet has it, too: a depthwise-separable convolution of
stride 2 down; up, every frame twice behind a linear layer.
"""

from __future__ import annotations

import torch
from torch import nn

from espnet_ee.errors import UsageError
from espnet_ee.values import is_whole


class HalfRateInput(nn.Module):
    """T frames to ceil(T/2): frame j is made of 2j - 1, 2j and 2j + 1, zeros where an utterance is padded.

    Args:
        size: D.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(size, size, 3, stride=2, padding=1, groups=size)
        self.pointwise = nn.Linear(size, size)

    def forward(self, xs: torch.Tensor, real: torch.Tensor | None) -> torch.Tensor:
        """(B, T, D) to (B, ceil(T/2), D); ``real`` is True on real frames (B, T, 1), None: all are."""
        if real is not None:
            xs = xs.masked_fill(~real, 0.0)
        return self.pointwise(self.depthwise(xs.transpose(1, 2)).transpose(1, 2))


class HalfRateOutput(nn.Linear):
    """Every frame behind a linear layer, twice: (B, ceil(T/2), D) to (B, T, D).

    Args:
        size: D.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size, size)

    def forward(self, half: torch.Tensor, frames: int | None = None) -> torch.Tensor:
        """Gives so many frames T, by default two for each."""
        return full_rate(super().forward(half), frames)


def full_rate(half: torch.Tensor, frames: int | None) -> torch.Tensor:
    """Every frame twice: (B, ceil(T/2), D) to (B, T, D)."""
    return half.repeat_interleave(2, dim=1)[:, :frames]


def check_half_rate(half_rate: list[int], num_blocks: int) -> tuple[int, int] | None:
    """Returns the first and the last block at half rate, None for none. Raises UsageError for anything else."""
    if half_rate == []:
        return None
    numbers = isinstance(half_rate, (list, tuple)) and all(is_whole(block, most=num_blocks) for block in half_rate)
    if not numbers or len(half_rate) != 2 or half_rate[0] > half_rate[1]:
        raise UsageError(
            f"encoder_conf: half_rate is {half_rate!r}; give the first and the last of the blocks at half rate, "
            f"such as [{num_blocks // 2}, {num_blocks - 1}] of {num_blocks}, or [] for none"
        )
    first, last = half_rate
    return first, last
