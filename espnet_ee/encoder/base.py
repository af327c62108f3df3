"""The layer loop of an early-exit encoder: start, advance, stop.

``SegmentEncoder`` owns the loop for every backbone; a backbone says how its input becomes frames (``embed_frames``), what one
block does (``block``), and which norm stands before an exit's head. Nothing above the exit that was asked for is computed.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, ClassVar, Protocol

import torch
from espnet2.asr.encoder.abs_encoder import AbsEncoder

from espnet_ee.compute import MacTable
from espnet_ee.encoder.counting import count_encoder
from espnet_ee.errors import UsageError, UserError
from espnet_ee.host.compat import TooShortUttError
from espnet_ee.subsampling import Convolutions, reach
from espnet_ee.values import is_number, is_whole


class TooShortError(UserError, TooShortUttError):
    """No frame would be left of a whole batch. Stock inference knows ESPnet's class: it then writes an empty text."""

    def __init__(self, message: str, length: int, least: int) -> None:
        TooShortUttError.__init__(self, message, length, least)


class Carry(Protocol):
    """What a backbone's blocks need beside the hidden states: masks, positions, caches.

    A dataclass; tensors that gradients flow through are fields of its own (:func:`scale_gradients`).
    """

    def select(self, rows: torch.Tensor, frames: int) -> Carry:
        """The same for some utterances only.

        Args:
            rows: of the batch, in the order in which they are kept.
            frames: encoder frames of the longest of them; what lies beyond is padding.
        """


@dataclass(frozen=True)
class EncoderState:
    """Where a batch stands between two blocks.

    Attributes:
        hidden: hidden states (B, T, D).
        olens: real frames per utterance (B,).
        carry: the backbone's own.
        layer: number of blocks already computed.
    """

    hidden: torch.Tensor
    olens: torch.Tensor
    carry: Carry
    layer: int = 0

    def select(self, indices: Sequence[int] | torch.Tensor) -> EncoderState:
        """Keeps only some utterances (rows of the batch, in their new order; at least one), so that the ones that are finished cost
        nothing more. Frames that are padding for all the kept utterances go, too.
        """
        rows = torch.as_tensor(indices, device=self.hidden.device, dtype=torch.long)
        olens = self.olens[rows.to(self.olens.device)]
        frames = int(olens.max())
        return replace(self, hidden=self.hidden[rows, :frames], olens=olens, carry=self.carry.select(rows, frames))


class ExitReader(Protocol):
    """Which head reads which exit."""

    def logits(self, layer: int, hs: torch.Tensor, olens: torch.Tensor) -> torch.Tensor:
        """What the head of the exit after block ``layer`` gives: hs (B, T, D), olens (B,) -> (B, T, V)."""


@dataclass(frozen=True)
class ExitOutput:
    """What one exit gives.

    Attributes:
        layer: 1-based number of the block the exit follows.
        hs: normalised hidden states for the exit's head (B, T, D).
        olens: real frames per utterance (B,).
        state: from where to go on to the next exit.
        logits: what the exit's head gives (B, T, V), where the blocks above read it; None: nobody has asked yet.
    """

    layer: int
    hs: torch.Tensor
    olens: torch.Tensor
    state: EncoderState
    logits: torch.Tensor | None = None


class SegmentEncoder(AbsEncoder):
    """An encoder that is computed one segment at a time and can stop after any of them.

    A backbone sets ``input_size`` and ``exit_layers`` and implements the abstract methods. It must not let an
    utterance see what it is batched with.

    Attributes:
        takes: ``"features"`` (B, L, input_size) or ``"samples"`` (B, L).
        input_size: feature dimension.
        exit_layers: 1-based numbers of the blocks that an exit follows; the last block is one of them.
        frame_period: 2 where some blocks see every second frame: then odd and even numbers of frames cost differently.
        mean_gradients: in training each segment's parameters get the mean of the gradients of the exits from it on, not their
            sum (arXiv 1908.06294); what is after the blocks, norms and heads, gets its own as ever.
        conditioned: whether a segment reads what the head of the exit below says (self-conditioned CTC, arXiv 2104.02724).
        heads: of a conditioned encoder, the model's; they are parameters of the model, not of the encoder.
        chunk_limits: of an encoder that was trained for chunks, the fewest and the most frames that a chunk had; None: it was not.
        chunk_step: 2 where a chunk has an even number of frames.
        chunk: frames of a chunk beyond which a frame sees nothing, outside of training; None: it sees the whole utterance.
    """

    takes: ClassVar[str] = "features"
    frame_period: int = 1
    mean_gradients: bool = False
    conditioned: bool = False
    heads: ExitReader | None = None
    chunk_limits: tuple[int, int] | None = None
    chunk_step: int = 1
    chunk: int | None = None
    input_size: int
    exit_layers: tuple[int, ...]
    _macs: MacTable | None = None

    # --- the loop -----------------------------------------------------------------------------------------------------

    def start(self, xs_pad: torch.Tensor, ilens: torch.Tensor) -> EncoderState:
        """The state before the first block; see :meth:`embed_frames`.

        Raises:
            TooShortError: the whole batch is too short to leave a frame.
            UserError: it holds other features than the encoder takes.
        """
        if self.takes == "features" and xs_pad.size(2) != self.input_size:
            raise UserError(
                f"features of {xs_pad.size(2)} values a frame, where {type(self).__name__} takes {self.input_size}; "
                "give the features that its configuration describes (frontend_conf: n_mels, or input_size)"
            )
        if xs_pad.size(1) < self.min_frames:
            unit = "feature frames" if self.takes == "features" else self.takes
            raise TooShortError(
                f"{xs_pad.size(1)} {unit} are too few for {type(self).__name__}; "
                f"pad the input to {self.min_frames} or drop the utterance",
                xs_pad.size(1),
                self.min_frames,
            )
        return self.embed_frames(xs_pad, ilens)

    def advance(self, state: EncoderState) -> ExitOutput:
        """Computes the blocks up to the next exit, and no more.

        Args:
            state: from :meth:`start` or from the previous :class:`ExitOutput`.
        """
        layer = next(exit_layer for exit_layer in self.exit_layers if exit_layer > state.layer)
        exits = sum(exit_layer >= layer for exit_layer in self.exit_layers)  # that the gradient comes from
        averaging = self.mean_gradients and self.training
        if averaging and state.layer:
            # Above it is the mean over these, below it is to be their part of the mean over one more.
            state = scale_gradients(state, exits / (exits + 1))
        for number in range(state.layer + 1, layer + 1):
            state = replace(self.block(number, state), layer=number)
        read = scale_gradients(state, 1 / exits) if averaging else state
        hidden, norm = self.exit_hidden(layer, read), self.exit_norm_of(layer)
        return ExitOutput(layer, hidden if norm is None else norm(hidden), state.olens, state)

    def iter_exits(self, xs_pad: torch.Tensor, ilens: torch.Tensor) -> Iterator[ExitOutput]:
        """Yields the exits from the first to the final one; each is computed when it is asked for. See :meth:`embed_frames`."""
        state = self.start(xs_pad, ilens)
        while state.layer < self.exit_layers[-1]:
            output = self.advance(state)
            yield output
            state = output.state

    def forward(
        self,
        xs_pad: torch.Tensor,
        ilens: torch.Tensor,
        prev_states: torch.Tensor | None = None,
        ctc: torch.nn.Module | None = None,
    ) -> tuple[tuple[torch.Tensor, list[tuple[int, torch.Tensor]]], torch.Tensor, None]:
        """All exits, in the form of ESPnet's InterCTC (``ESPnetASRModel.encode``), whose last two arguments are not used.

        Returns:
            ``(final output (B, T, D), [(layer, output (B, T, D)) of the exits below]), olens (B,), None``
        """
        outputs = list(self.iter_exits(xs_pad, ilens))
        below = [(output.layer, output.hs) for output in outputs[:-1]]
        return (outputs[-1].hs, below), outputs[-1].olens, None

    # --- what a backbone says -----------------------------------------------------------------------------------------

    @abstractmethod
    def embed_frames(self, xs: torch.Tensor, ilens: torch.Tensor) -> EncoderState:
        """Subsamples and adds positions: the state before the first block.

        Args:
            xs: features (B, L, input_size) or samples (B, L), as ``takes`` says.
            ilens: real length of each utterance (B,).
        """

    @abstractmethod
    def block(self, number: int, state: EncoderState) -> EncoderState:
        """Computes one block.

        Args:
            number: 1-based; the state stands right below it.
            state: (its ``layer`` is kept by the loop).
        """

    @abstractmethod
    def exit_norm_of(self, layer: int) -> torch.nn.Module | None:
        """The norm between block ``layer`` and the head of its exit, or None where there is none."""

    def exit_hidden(self, layer: int, state: EncoderState) -> torch.Tensor:
        """What the exit after block ``layer`` reads before its norm (B, T, D): a frame for each of ``olens``."""
        return state.hidden

    @property
    @abstractmethod
    def subsampling(self) -> Convolutions:
        """The convolutions over time before the first block; of a padded one the kernel less its padding."""

    def place_exits(self, exit_layers: Sequence[int], num_blocks: int) -> None:
        """Sets ``exit_layers``, under ESPnet's name, too. Raises UsageError as :func:`check_exit_layers`."""
        self.exit_layers = check_exit_layers(exit_layers, num_blocks)
        self.interctc_layer_idx = list(self.exit_layers[:-1])

    # --- what follows from it -----------------------------------------------------------------------------------------

    @property
    def min_frames(self) -> int:
        """Length of the shortest input that leaves one frame after subsampling."""
        return reach(self.subsampling)

    @property
    def stride(self) -> int:
        """Length that makes one further frame after subsampling."""
        return math.prod(stride for _, stride in self.subsampling)

    def frames_of(self, lengths: torch.Tensor) -> torch.Tensor:
        """Frames left of each utterance after subsampling, from its own length alone (B,)."""
        return (torch.div(lengths - self.min_frames, self.stride, rounding_mode="floor") + 1).clamp(min=0)

    def macs(self) -> MacTable:
        """What this encoder costs, counted by torch when it is first asked for."""
        if self._macs is None:
            self._macs = count_encoder(self)
        return self._macs

    # --- for ONNX: no number is read from a tensor --------------------------------------------------------------------

    def traced_embed(self, xs: torch.Tensor, ilens: torch.Tensor) -> torch.Tensor:
        """The hidden states (B, T, D) that :meth:`embed_frames` makes of the same.

        Args:
            xs: as :meth:`embed_frames` takes it; samples are zero where they are padded, and L is not below ``min_frames``.
            ilens: likewise.

        Raises:
            UserError: the backbone has no ONNX form.
        """
        raise UserError(f"{type(self).__name__} has no ONNX form: its code depends on the lengths' values")

    def traced_carry(self, hidden: torch.Tensor, olens: torch.Tensor) -> Carry:
        """What the blocks need beside the hidden states, from shapes and lengths alone, at any exit: always masked.

        Args:
            hidden: (B, T, D).
            olens: real frames (B,), one or more each.
        """
        raise UserError(f"{type(self).__name__} has no ONNX form: its code depends on the lengths' values")

    def packed_size(self, layer: int) -> int:
        """Dimension D' of what :meth:`packed` makes at an exit layer; of layer 0, of the hidden states before the first block."""
        return self.output_size()

    def packed(self, state: EncoderState) -> torch.Tensor:
        """All that the next segment begins with, as one tensor (B, T, D')."""
        return state.hidden

    def unpacked(self, packed: torch.Tensor, olens: torch.Tensor, layer: int) -> EncoderState:
        """The state after block ``layer`` that :meth:`packed` was made of; see :meth:`traced_carry`."""
        return EncoderState(packed, olens, self.traced_carry(packed, olens), layer)


def real_frames(olens: torch.Tensor, padded: torch.Tensor) -> torch.Tensor:
    """Which frames of a padded batch (B, T, ...) are real (B, T); ``olens`` says how many of each utterance (B,)."""
    return torch.arange(padded.size(1), device=padded.device) < olens.to(padded.device)[:, None]


def block_of(name: str) -> int:
    """1-based number of the block that an encoder's parameter of this name belongs to; 0 for what lies before the first."""
    return int(name.split(".")[1]) + 1 if name.startswith("encoders.") else 0


def trains_with_others() -> bool:
    """Whether this process shares its training with others, who wait for the gradient of every parameter."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def left_out(hidden: torch.Tensor, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    """What comes out of a block that is left out of a training step: what went in.

    Processes that train together wait for the gradient of every parameter: they compute the block, and its gradient is 0.
    """
    return hidden + 0.0 * compute() if trains_with_others() else hidden


def scale_gradient(values: torch.Tensor, factor: float) -> torch.Tensor:
    """The same values, whose gradient is multiplied on its way back."""
    if not values.requires_grad:
        return values
    same = values.view_as(values)
    same.register_hook(lambda gradient: gradient * factor)
    return same


def scale_gradients(state: EncoderState, factor: float) -> EncoderState:
    """The same state with :func:`scale_gradient` on all that the blocks above read: a carry may hold hidden states, too."""
    carry: Any = state.carry
    held = {field.name: getattr(carry, field.name) for field in fields(carry)}
    scaled = {name: scale_gradient(value, factor) for name, value in held.items() if isinstance(value, torch.Tensor)}
    return replace(state, hidden=scale_gradient(state.hidden, factor), carry=replace(carry, **scaled))


def check_exit_layers(exit_layers: Sequence[int], num_blocks: int) -> tuple[int, ...]:
    """Returns the exit layers as a tuple when they fit the encoder.

    Args:
        exit_layers: 1-based block numbers, rising; the last block must be among them.
        num_blocks: blocks of the encoder.

    Raises:
        UsageError: not whole numbers, not rising, beyond the last block, or without the last block.
    """
    layers = tuple(exit_layers) if isinstance(exit_layers, (list, tuple)) else ()
    if not layers or not all(is_whole(layer, -math.inf) for layer in layers):
        raise UsageError(f"encoder_conf: exit_layers is {exit_layers!r}; give block numbers such as [2, 4, {num_blocks}]")
    if any(a >= b for a, b in pairwise(layers)) or layers[0] < 1:
        raise UsageError(f"encoder_conf: exit_layers {list(layers)} must rise, from 1 on")
    if layers[-1] > num_blocks:
        raise UsageError(f"encoder_conf: exit layer {layers[-1]} is beyond the last block; num_blocks is {num_blocks}")
    if layers[-1] != num_blocks:
        raise UsageError(f"encoder_conf: exit_layers {list(layers)} lack the last block; add {num_blocks} or lower num_blocks")
    return layers


def check_counts(least: int, **counts: Any) -> None:
    """Raises UsageError for the first setting that is no whole number from ``least`` on."""
    for name, count in counts.items():
        if not is_whole(count, least):
            raise UsageError(f"encoder_conf: {name} {count!r} is no whole number from {least} on")


def check_rates(**rates: Any) -> None:
    """Raises UsageError for the first setting that is no rate; YAML takes 1e-1 for a word."""
    for name, rate in rates.items():
        if not is_number(rate, 0.0) or rate >= 1.0:
            raise UsageError(f"encoder_conf: {name} {rate!r} is no rate from 0.0 to below 1.0")
