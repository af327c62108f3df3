"""Multiply-accumulates (MACs) of an early-exit encoder, counted from its shape: no run, no torch.

Counted: subsampling, blocks, exit heads, and the evidence read from a head. Not counted: norms, activations,
dropout, softmax inside attention, and the frontend (the same for every exit). The tests hold these
formulas against torch's FlopCounterMode; :class:`CountedShape` stands for blocks that have none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Convolution:
    """One unpadded 2-D convolution of the subsampling layer (square kernel, same stride both ways)."""

    channels_in: int
    channels_out: int
    kernel: int
    stride: int

    def length(self, size: int) -> int:
        """Output length along one axis."""
        return (size - self.kernel) // self.stride + 1


@dataclass(frozen=True)
class EncoderShape(ABC):
    """What decides the compute of any early-exit encoder.

    Attributes:
        input_size: feature dimension.
        width: model dimension D.
        blocks: number of blocks.
        convolutions: the subsampling layer; empty for ``input_layer: linear``.
    """

    input_size: int
    width: int
    blocks: int
    convolutions: tuple[Convolution, ...]

    @abstractmethod
    def blocks_macs(self, frames: int, layer: int) -> int:
        """MACs of the first ``layer`` blocks for one utterance of ``frames`` encoder frames."""

    def encoder_frames(self, feature_frames: int) -> int:
        """Frames after subsampling."""
        for convolution in self.convolutions:
            feature_frames = convolution.length(feature_frames)
        return max(0, feature_frames)

    def subsampling_macs(self, feature_frames: int) -> int:
        """MACs of the subsampling layer for one utterance."""
        frames, bins, total = feature_frames, self.input_size, 0
        for layer in self.convolutions:
            frames, bins = layer.length(frames), layer.length(bins)
            total += frames * bins * layer.channels_in * layer.channels_out * layer.kernel**2
        flat = bins * self.convolutions[-1].channels_out if self.convolutions else self.input_size
        return total + frames * flat * self.width

    def segment_macs(self, feature_frames: int, exit_layers: Sequence[int]) -> list[int]:
        """MACs from the front of the encoder up to each exit's block, cumulative, for one utterance.

        Args:
            feature_frames: frames of features.
            exit_layers: 1-based, rising.
        """
        front = self.subsampling_macs(feature_frames)
        frames = self.encoder_frames(feature_frames)
        return [front + self.blocks_macs(frames, layer) for layer in exit_layers]

    def head_macs(self, frames: int, vocabulary: int) -> int:
        """MACs of one exit's linear layer and of its evidence.

        The evidence is one pass over what the linear layer gives: the sum of exponentials and the entropy, one
        multiply-accumulate each per frame and token. Comparing with a threshold costs nothing beside it.
        """
        return frames * vocabulary * (self.width + 2)


@dataclass(frozen=True)
class ConformerShape(EncoderShape):
    """What decides the compute of a conformer.

    Attributes:
        feed_forward: units of a feed-forward module.
        feed_forwards: feed-forward modules in a block (2 with macaron style).
        kernel: depthwise kernel size; 0 without convolution modules.
        relative: whether attention uses relative positions.
        concat_after: whether attention's input and output are joined by a linear layer.
    """

    feed_forward: int
    feed_forwards: int
    kernel: int
    relative: bool
    concat_after: bool

    def blocks_macs(self, frames: int, layer: int) -> int:
        """MACs of the first ``layer`` blocks, which are all alike."""
        return layer * self.block_macs(frames)

    def block_macs(self, frames: int) -> int:
        """MACs of one block for one utterance of ``frames`` encoder frames."""
        d = self.width
        linear = 4 * d * d + self.feed_forwards * 2 * d * self.feed_forward + (2 * d * d if self.concat_after else 0)
        convolution = 3 * d * d + d * self.kernel if self.kernel else 0
        attention = 2 * frames * frames * d
        if self.relative:
            attention += (2 * frames - 1) * d * (d + frames)
        return frames * (linear + convolution) + attention


@dataclass(frozen=True)
class BranchformerShape(ConformerShape):
    """What decides the compute of a Branchformer or an E-Branchformer: attention beside a cgMLP, then a merge.

    ``kernel`` is that of the cgMLP's depthwise convolution.

    Attributes:
        gate_units: units of the cgMLP; half of them gate the other half.
        gate_linear: whether a linear layer follows the cgMLP's convolution.
        merge: how the branches become one: ``concat``, ``fixed_ave`` or ``learned_ave`` of a Branchformer.
        merge_kernel: depthwise kernel over both branches (E-Branchformer); 0 without.
    """

    gate_units: int
    gate_linear: bool
    merge: str
    merge_kernel: int

    def block_macs(self, frames: int) -> int:
        """MACs of one block for one utterance of ``frames`` encoder frames."""
        d, half = self.width, self.gate_units // 2
        gating = d * self.gate_units + half * self.kernel + (half * half if self.gate_linear else 0) + half * d
        merging = 2 * d * self.merge_kernel + (2 * d * d if self.merge == "concat" else d * d)
        # A score per frame and the mean weighted by it, of both branches; then a weight for each.
        pooling = 4 * frames * d + 2 * d if self.merge == "learned_ave" else 0
        # What is left of a conformer without its convolution module: attention and feed-forward modules.
        rest = replace(self, kernel=0)
        return ConformerShape.block_macs(rest, frames) + frames * (gating + merging) + pooling


@dataclass(frozen=True)
class CountedShape(EncoderShape):
    """Blocks without a formula: torch counted them at some lengths, and in between and beyond they follow a parabola.

    Attributes:
        counts: for every exit layer the MACs of the blocks up to it at 1 frame, the step from there to 2 frames, and
            what every further step is larger than the one before.
    """

    counts: Mapping[int, tuple[int, int, int]]

    def blocks_macs(self, frames: int, layer: int) -> int:
        """MACs of the blocks up to an exit layer."""
        at_one, step, growth = self.counts[layer]
        steps = frames - 1
        return at_one + steps * step + steps * (steps - 1) // 2 * growth
