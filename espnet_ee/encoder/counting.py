"""MACs of an encoder as torch counts them over a few frames.

An attention's cost grows with the square of the frames, everything else linearly: three counts make the parabola of all
lengths, for each residue of the frames where blocks see every second frame. A subsampling layer's cost is linear for each
residue of the length modulo its stride. (So few frames are computed in less time than torch's meta device takes to say what
would be.)
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from espnet_ee.compute import MacTable, Parabola

if TYPE_CHECKING:
    from espnet_ee.encoder.base import EncoderState, SegmentEncoder

Module = TypeVar("Module", bound=torch.nn.Module)


def count_encoder(encoder: SegmentEncoder) -> MacTable:
    """Counts the subsampling layer and the blocks up to every exit of an encoder, which stays as it is; on any device."""
    twin = copy_on_same(encoder)
    stride, period = encoder.stride, encoder.frame_period
    # Lengths between which the first convolution has no place more cost the same; of samples that is one count in five.
    alike = encoder.subsampling[0][1] if encoder.subsampling else 1
    first = [count_front(twin, encoder.min_frames + further)[0] for further in range(0, stride, alike)]
    fronts, states = zip(
        *(count_front(twin, encoder.min_frames + further * stride) for further in range(3 * period)), strict=True
    )
    counts = [count_blocks(twin, state) for state in states]
    return MacTable(
        min_frames=encoder.min_frames,
        stride=stride,
        front=tuple(macs for macs in first for _ in range(alike)),
        front_step=fronts[1] - fronts[0],
        blocks={
            layer: tuple(parabola(*(count[layer] for count in counts[rest::period])) for rest in range(period))
            for layer in encoder.exit_layers
        },
    )


def parabola(one: int, two: int, three: int) -> Parabola:
    """The parabola through the counts at one, two and three frames."""
    return Parabola(one, two - one, three - 2 * two + one)


def copy_on_same(module: Module) -> Module:
    """A copy on the same parameters and buffers, in evaluation mode, in which it changes none of them; no hook sees it run."""
    replaced: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    for part in module.modules():
        replaced.update((id(hooks), OrderedDict()) for hooks in (part._forward_hooks, part._forward_pre_hooks))
    return copy.deepcopy(module, memo=replaced).eval()


class _Counter(TorchDispatchMode):
    """Counts with the formulas of torch's FlopCounterMode, which itself loads the compiler: two seconds before the first word."""

    flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # nothing here is ever compiled
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


@contextmanager
def counter() -> Iterator[Callable[[], int]]:
    """Counts the MACs of what is computed inside; gives a function that says how many so far."""
    # Nothing would be seen inside fused attention and torch's fast path, and less in inference mode.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.inference_mode(False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _Counter() as counts:
            yield lambda: counts.flops // 2
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def count_front(twin: SegmentEncoder, length: int) -> tuple[int, EncoderState]:
    """MACs of the subsampling layer for one utterance of this length, and what it gives."""
    weight = next(twin.parameters())
    shape = (1, length, twin.input_size) if twin.takes == "features" else (1, length)
    with counter() as macs:
        state = twin.start(torch.zeros(shape, dtype=weight.dtype, device=weight.device), torch.tensor([length]))
        return macs(), state


def count_blocks(twin: SegmentEncoder, state: EncoderState) -> dict[int, int]:
    """MACs of the blocks up to every exit, by exit layer."""
    counts = {}
    with counter() as macs:
        while state.layer < twin.exit_layers[-1]:
            state = twin.advance(state).state
            counts[state.layer] = macs()
    return counts
