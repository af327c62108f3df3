"""MACs of an encoder as torch counts them on its meta device: shapes without numbers, so nothing is computed.

An attention's cost grows with the square of the frames, everything else linearly: three counts make the parabola of all
lengths. A subsampling layer's cost is linear for each residue of the length modulo its stride.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from espnet_ee.compute import MacTable, Parabola

if TYPE_CHECKING:
    from espnet_ee.encoder.base import EncoderState, SegmentEncoder

Module = TypeVar("Module", bound=torch.nn.Module)


def count_encoder(encoder: SegmentEncoder) -> MacTable:
    """Counts the subsampling layer and the blocks up to every exit.

    Args:
        encoder: stays as it is; on any device.
    """
    shell = without_numbers(encoder)
    stride = encoder.stride
    lengths = [encoder.min_frames + further for further in (*range(stride), stride, 2 * stride)]
    fronts, states = zip(*(count_front(shell, length) for length in lengths), strict=True)
    one, two, three = (count_blocks(shell, states[place]) for place in (0, stride, -1))
    return MacTable(
        min_frames=encoder.min_frames,
        stride=stride,
        front=fronts[:stride],
        front_step=fronts[stride] - fronts[0],
        blocks={layer: parabola(one[layer], two[layer], three[layer]) for layer in encoder.exit_layers},
    )


def parabola(one: int, two: int, three: int) -> Parabola:
    """The parabola through the counts at one, two and three frames."""
    return Parabola(one, two - one, three - 2 * two + one)


def without_numbers(module: Module) -> Module:
    """A copy on the meta device, in evaluation mode, for which no memory is taken."""
    tensors = {id(tensor): torch.empty_like(tensor, device="meta") for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, memo=tensors).eval()


@contextmanager
def counter() -> Iterator[Callable[[], int]]:
    """Counts the MACs of what is computed inside; gives a function that says how many so far."""
    # Inside fused attention nothing would be seen. (Nor in torch's fast path, but the meta device has none.)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as flops:
        yield lambda: flops.get_total_flops() // 2


def count_front(shell: SegmentEncoder, length: int) -> tuple[int, EncoderState]:
    """MACs of the subsampling layer for one utterance of this length, and what it gives."""
    dtype = next(shell.parameters()).dtype
    shape = (1, length, shell.input_size) if shell.takes == "features" else (1, length)
    with counter() as macs:
        state = shell.start(torch.empty(shape, dtype=dtype, device="meta"), torch.tensor([length]))
        return macs(), state


def count_blocks(shell: SegmentEncoder, state: EncoderState) -> dict[int, int]:
    """MACs of the blocks up to every exit, by exit layer."""
    counts = {}
    with counter() as macs:
        while state.layer < shell.exit_layers[-1]:
            state = shell.advance(state).state
            counts[state.layer] = macs()
    return counts
