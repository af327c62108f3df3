"""``encoder: early_exit_splitformer``: the fast conformer with a branch at half rate beside its first and last segment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from espnet_ee.encoder.base import EncoderState
from espnet_ee.encoder.fast_conformer import EarlyExitFastConformerEncoder, FastCarry
from espnet_ee.encoder.half_rate import HalfRateInput, HalfRateOutput
from espnet_ee.host.signature import extend_signature, reject_unknown_keys


class HalfRateBranch(nn.Module):
    """One block on every second frame.

    Args:
        size: D.
        block: a new block.
    """

    def __init__(self, size: int, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.input, self.block, self.output = HalfRateInput(size), block(), HalfRateOutput(size)

    def forward(self, xs: torch.Tensor, carry: FastCarry) -> torch.Tensor:
        """(B, T, D) to (B, ceil(T/2), D), which ``output`` makes (B, T, D) of; ``carry`` is that of the full rate."""
        half = carry.at_half_rate
        return self.block(self.input(xs, carry.real), half.cosines, half.sines, half.real, half.seen)


@extend_signature(EarlyExitFastConformerEncoder, without=("half_rate", "chunk_range", "left_frames"))
class EarlyExitSplitformerEncoder(EarlyExitFastConformerEncoder):
    """The fast conformer; beside the segments of the first and of the last exit, a block sees every second frame (arXiv 2506.18035).

    What goes into such a segment goes into the branch, too, whose output is added to the segment's. Lengths and masks of the
    branch are those of every second frame (the authors' code masks by the full rate's), so no frame sees padding.

    Takes what :class:`EarlyExitFastConformerEncoder` takes, but for ``half_rate`` and chunks.

    Example:
        >>> encoder = EarlyExitSplitformerEncoder(80, [1, 2, 4], output_size=8, attention_heads=2, num_blocks=4)
        >>> sorted(encoder.branches)
        ['1', '4']
    """

    frame_period = 2

    def __init__(self, input_size: int, exit_layers: list[int] = [], **fast: Any) -> None:  # noqa: B006 - ESPnet shows it
        reject_unknown_keys(type(self), "encoder_conf", fast)
        super().__init__(input_size, exit_layers, **fast)
        ends = {self.exit_layers[0], self.exit_layers[-1]}
        self.branches = nn.ModuleDict({str(end): HalfRateBranch(self.size, self.new_block) for end in sorted(ends)})
        starts = (1, *(layer + 1 for layer in self.exit_layers))
        self.branch_starts = {start: end for start, end in zip(starts, self.exit_layers, strict=False) if end in ends}

    def block(self, number: int, state: EncoderState) -> EncoderState:
        """Computes one block, and the branch beside its segment."""
        carry, hidden = cast(FastCarry, state.carry), state.hidden
        if number in self.branch_starts:
            carry = replace(carry, half=self.branches[str(self.branch_starts[number])](hidden, carry))
        hidden = self.block_output(number, hidden, carry)
        if carry.half is not None and str(number) in self.branches:
            branch = cast(HalfRateBranch, self.branches[str(number)])
            hidden = hidden + branch.output(carry.half, hidden.size(1))
            carry = replace(carry, half=None)
        return replace(state, hidden=hidden, carry=carry)
