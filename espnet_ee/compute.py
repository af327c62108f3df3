"""Multiply-accumulates (MACs) of an early-exit model: a table of whole numbers, exact for every length.

Counted: subsampling, blocks, exit heads, the evidence read from a head, and the steps of an attention decoder. Not counted: norms, activations,
dropout, softmax inside attention, and the frontend (the same for every exit). The numbers are counted by torch once
per model (``SegmentEncoder.macs``, ``model.heads.mac_table``); this table is all that an engine without torch needs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_MACS = 10**15  # of a stranger's table: a hundred times what the largest model spends on an hour


@dataclass(frozen=True)
class Parabola:
    """MACs as a function of the frames: constant, linear and (attention) quadratic parts, without rounding.

    Attributes:
        at_one: value at one frame.
        step: from one frame to two.
        growth: what every further step is larger than the one before.

    Example:
        >>> [Parabola(at_one=5, step=7, growth=2)(frames) for frames in range(5)]
        [0, 5, 12, 21, 32]
    """

    at_one: int
    step: int
    growth: int = 0

    def __call__(self, frames: int) -> int:
        """The value at a number of frames; none for none."""
        if frames < 1:
            return 0
        steps = frames - 1
        return self.at_one + steps * self.step + steps * (steps - 1) // 2 * self.growth


# A frame of CTC's prefix score for one token: two sums of two exponentials, each term of which counts as one.
PREFIX_MACS = 4


@dataclass(frozen=True)
class StepMacs:
    """MACs of one step of an attention decoder for one hypothesis, by what it looks at.

    Attributes:
        at_one: with one token so far (the start) and one frame.
        per_token: of every further token.
        per_frame: of every further frame.

    Example:
        >>> StepMacs(at_one=100, per_token=10, per_frame=1)(tokens=3, frames=5)
        124
    """

    at_one: int
    per_token: int
    per_frame: int

    def __call__(self, tokens: int, frames: int) -> int:
        """The value at a number of tokens and frames, from one on each."""
        return self.at_one + (tokens - 1) * self.per_token + (frames - 1) * self.per_frame


@dataclass(frozen=True)
class MacTable:
    """What one utterance costs up to each exit.

    Attributes:
        min_frames: feature frames (samples, for an encoder that takes audio) that give one encoder frame.
        stride: those that give each further one.
        front: MACs of the subsampling layer at ``min_frames`` and each of the next ``stride - 1`` lengths.
        front_step: what it costs more for every further encoder frame.
        blocks: by exit layer, MACs of all blocks up to it: a parabola for each residue of the encoder frames. Mostly one; two
            where some blocks see every second frame, the first for 1, 3, 5 ... frames and the second for 2, 4, 6 ...
        heads: by exit layer, MACs of its head and of the evidence read from it; empty in an encoder's own table.
    """

    min_frames: int
    stride: int
    front: tuple[int, ...]
    front_step: int
    blocks: dict[int, tuple[Parabola, ...]]
    heads: dict[int, Parabola] = field(default_factory=dict)

    @classmethod
    def from_mapping(cls, mapping: Any, exit_layers: Iterable[int]) -> MacTable:
        """Reads what :func:`dataclasses.asdict` makes of a table, lists for tuples, as a stranger's file may hold it.

        Raises:
            ValueError: it is something else.
        """
        layers = list(exit_layers)
        try:
            if not all(isinstance(mapping[key], dict) for key in ("blocks", "heads")):
                raise TypeError("blocks and heads stand by exit layer")
            blocks = {layer: tuple(_parabola(part) for part in mapping["blocks"][layer]) for layer in layers}
            heads = {layer: _parabola(mapping["heads"][layer]) for layer in layers}
            front = tuple(_count(macs) for macs in mapping["front"])
            least, stride, step = _count(mapping["min_frames"], 1), _count(mapping["stride"], 1), _count(mapping["front_step"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no table of multiply-accumulates of the exits {layers}: {error!r}") from None
        if len(front) != stride or not all(blocks.values()):
            raise ValueError(f"{len(front)} lengths of the front for a stride of {stride}, or no blocks")
        return cls(least, stride, front, step, blocks, heads)

    def encoder_frames(self, feature_frames: int) -> int:
        """Frames after subsampling."""
        return max(0, (feature_frames - self.min_frames) // self.stride + 1)

    def encoder_macs(self, layer: int, feature_frames: int) -> int:
        """MACs from the front of the encoder up to the exit after block ``layer``; what leaves no encoder frame costs nothing."""
        if feature_frames < self.min_frames:
            return 0
        further, rest = divmod(feature_frames - self.min_frames, self.stride)
        return self.front[rest] + further * self.front_step + self.block_macs(layer, further + 1)

    def block_macs(self, layer: int, frames: int) -> int:
        """MACs of the blocks alone up to the exit after block ``layer``, for so many encoder frames."""
        if frames < 1:
            return 0
        parabolas = self.blocks[layer]
        further, rest = divmod(frames - 1, len(parabolas))
        return parabolas[rest](further + 1)

    def head_macs(self, layer: int, frames: int) -> int:
        """MACs of the head of the exit after block ``layer`` and of its evidence, for so many encoder frames."""
        return self.heads[layer](frames)


def _parabola(mapping: Mapping[str, Any]) -> Parabola:
    return Parabola(*(_count(mapping[key]) for key in ("at_one", "step", "growth")))


def _count(value: Any, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= MOST_MACS:
        raise ValueError(f"{value!r} is no whole number from {least} on, in reason")
    return value
