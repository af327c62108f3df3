"""The layer loop of an early-exit encoder: start, advance, stop.

``EarlyExitEncoder`` owns the loop for every backbone; a backbone's file only says what it takes and what
it costs. Nothing above the exit that was asked for is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any

import torch

from espnet_ee.compute import Convolution
from espnet_ee.errors import UsageError, UserError
from espnet_ee.host.compat import LayerNorm, accept_either_version, check_short_utt, make_pad_mask, mask_convolutions
from espnet_ee.host.signature import reject_unknown_keys

# What exit_layers stands for, and what no early exit can honour; no encoder of ours takes them.
REPLACED = (
    "interctc_layer_idx",
    "interctc_use_conditioning",
    "ctc_trim",
    "layer_drop_rate",
    "gradient_checkpoint_layers",
)
INPUT_LAYERS = ("linear", "conv2d", "conv2d1", "conv2d2", "conv2d6", "conv2d8")
# The one value of a stock setting with which no frame sees another utterance's padding.
_PADDING_SAFE = {
    "rel_pos_type": ("latest",),
    "input_layer": INPUT_LAYERS,
    "pos_enc_layer_type": ("rel_pos", "abs_pos", "scaled_abs_pos"),
    "attention_layer_type": ("rel_selfattn", "selfattn"),
    "selfattention_layer_type": ("rel_selfattn", "selfattn"),
    "positionwise_layer_type": ("linear",),
}


@dataclass(frozen=True)
class EncoderState:
    """Where a batch stands between two segments.

    Attributes:
        xs: hidden states (B, T, D).
        pos_emb: relative positional embedding (1, 2T-1, D), or None where positions are added to xs.
        masks: True on real frames (B, 1, T), or None where every frame is real: then no block needs to mask.
        olens: real frames per utterance (B,).
        layer: number of blocks already computed.
    """

    xs: torch.Tensor
    pos_emb: torch.Tensor | None
    masks: torch.Tensor | None
    olens: torch.Tensor
    layer: int = 0

    def select(self, indices: Sequence[int] | torch.Tensor) -> EncoderState:
        """Keeps only some utterances, so that the ones that are finished cost nothing more.

        Frames that are padding for all the kept utterances go, too.

        Args:
            indices: rows of the batch to keep, in the wanted order; at least one.
        """
        rows = torch.as_tensor(indices, device=self.xs.device, dtype=torch.long)
        olens = self.olens[rows]
        lengths = olens.tolist()
        longest = max(lengths)
        cut = self.xs.size(1) - longest
        pos_emb = self.pos_emb
        if pos_emb is not None and cut:
            # The embedding runs from distance T-1 to -(T-1): a shorter batch needs the middle.
            pos_emb = pos_emb[:, cut : pos_emb.size(1) - cut]
        masks = None if self.masks is None or min(lengths) == longest else self.masks[rows, :, :longest]
        return replace(self, xs=self.xs[rows, :longest], pos_emb=pos_emb, masks=masks, olens=olens)


@dataclass(frozen=True)
class ExitOutput:
    """What one exit gives.

    Attributes:
        layer: 1-based number of the block the exit follows.
        hs: normalised hidden states for the exit's head (B, T, D).
        olens: real frames per utterance (B,).
        state: from where to go on to the next exit.
    """

    layer: int
    hs: torch.Tensor
    olens: torch.Tensor
    state: EncoderState


class EarlyExitEncoder:
    """Mixin before an ESPnet encoder class that has a plain list of blocks ``self.encoders``.

    A subclass implements ``shape()``. The stock parameters keep their stock names.

    Args:
        input_size: feature dimension.
        exit_layers: 1-based numbers of the blocks that an exit follows; the last block is one of them.
        exit_norm: ``"shared"``, ``"separate"`` or ``"none"``; see :meth:`add_exit_norms`.
        stock: every other keyword of the stock constructor.

    Raises:
        UsageError: the encoder has no plain list of blocks, the exits do not fit it, or a keyword is unknown or
            would make an utterance's output depend on its neighbours in the batch.
    """

    exit_layers: tuple[int, ...]

    def __init__(
        self,
        input_size: int,
        exit_layers: list[int] = [],  # noqa: B006 - ESPnet shows it in --print_config
        exit_norm: str = "shared",
        **stock: Any,
    ) -> None:
        reject_unknown_keys(type(self), "encoder_conf", stock)
        check_padding_safe(stock)
        super().__init__(input_size, **stock)
        blocks = getattr(self, "encoders", None)
        listed = isinstance(blocks, (torch.nn.ModuleList, torch.nn.Sequential)) and len(blocks) > 0
        if not listed or not isinstance(getattr(self, "embed", None), torch.nn.Module):
            raise UsageError(
                f"encoder: {type(self).__name__} has no plain list of blocks and cannot be driven block by block; "
                "use a conformer, transformer, branchformer or e_branchformer"
            )
        self.input_size = input_size
        self.exit_layers = check_exit_layers(exit_layers, len(blocks))
        self.interctc_layer_idx = list(self.exit_layers[:-1])
        self.add_exit_norms(exit_norm)
        accept_either_version(self)
        for block in blocks:
            mask_convolutions(block)

    @property
    def min_frames(self) -> int:
        """Feature frames that an utterance needs to leave one frame after subsampling."""
        return max(1, check_short_utt(self.embed, 0)[1])

    def start(self, xs_pad: torch.Tensor, ilens: torch.Tensor) -> EncoderState:
        """Subsamples and adds positions; no block has been computed yet.

        Args:
            xs_pad: features (B, L, input_size).
            ilens: real feature frames per utterance (B,).
        """
        if xs_pad.size(1) < self.min_frames:
            raise UserError(
                f"{xs_pad.size(1)} feature frames are too few for {type(self.embed).__name__}; "
                f"pad the input to {self.min_frames} or drop the utterance"
            )
        convolutions = self._convolutions()
        xs = self.embed(xs_pad, None)[0] if convolutions else self.embed(xs_pad)
        xs, pos_emb = xs if isinstance(xs, tuple) else (xs, None)
        # ESPnet 202511 counts frames on the padded length; ours come from each utterance's own.
        olens = strided_lengths(ilens, convolutions).clamp(min=0, max=xs.size(1))
        padded = int(olens.min()) < xs.size(1)
        masks = ~make_pad_mask(olens, maxlen=xs.size(1))[:, None, :].to(xs.device) if padded else None
        return EncoderState(xs, pos_emb, masks, olens)

    def front_shape(self) -> dict[str, Any]:
        """What every backbone's ``shape()`` holds: sizes, number of blocks, subsampling layer."""
        convolutions = tuple(
            Convolution(layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0])
            for layer in self._convolutions()
        )
        return {
            "input_size": self.input_size,
            "width": self.output_size(),
            "blocks": len(self.encoders),
            "convolutions": convolutions,
        }

    def _convolutions(self) -> list[torch.nn.Conv2d]:
        layers = getattr(self.embed, "conv", ())
        return [layer for layer in layers if isinstance(layer, torch.nn.Conv2d)]

    def advance(self, state: EncoderState) -> ExitOutput:
        """Computes the blocks up to the next exit, and no more.

        Args:
            state: from :meth:`start` or from the previous :class:`ExitOutput`.
        """
        layer = next(exit_layer for exit_layer in self.exit_layers if exit_layer > state.layer)
        xs = state.xs if state.pos_emb is None else (state.xs, state.pos_emb)
        masks = state.masks
        for block in islice(self.encoders, state.layer, layer):  # a slice would make a new module every time
            xs, masks = block(xs, masks)
        hidden = xs if state.pos_emb is None else xs[0]
        state = replace(state, xs=hidden, layer=layer)
        return ExitOutput(layer, self.normalize_exit(layer, hidden), state.olens, state)

    def iter_exits(self, xs_pad: torch.Tensor, ilens: torch.Tensor) -> Iterator[ExitOutput]:
        """Yields the exits from the first to the final one; each is computed when it is asked for.

        Args:
            xs_pad: features (B, L, input_size).
            ilens: real feature frames per utterance (B,).
        """
        state = self.start(xs_pad, ilens)
        while state.layer < self.exit_layers[-1]:
            output = self.advance(state)
            yield output
            state = output.state

    def normalize_exit(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """The norm between a block and the head of its exit (B, T, D) -> (B, T, D)."""
        norm = self.exit_norm_of(layer)
        return hidden if norm is None else norm(hidden)

    def exit_norm_of(self, layer: int) -> torch.nn.Module | None:
        """The norm of the exit after block ``layer``, or None where it has none."""
        if str(layer) in self.exit_norms:
            return self.exit_norms[str(layer)]
        if self.exit_norm == "none" and layer != self.exit_layers[-1]:
            return None
        return getattr(self, "after_norm", None)  # stock makes none with normalize_before: false

    def forward(
        self,
        xs_pad: torch.Tensor,
        ilens: torch.Tensor,
        prev_states: torch.Tensor | None = None,
        ctc: torch.nn.Module | None = None,
    ) -> tuple[tuple[torch.Tensor, list[tuple[int, torch.Tensor]]], torch.Tensor, None]:
        """All exits, in the form of ESPnet's InterCTC (``ESPnetASRModel.encode``).

        Args:
            xs_pad: features (B, L, input_size).
            ilens: real feature frames per utterance (B,).
            prev_states: not used; ESPnet's signature.
            ctc: not used; ESPnet's signature.

        Returns:
            ``(final output (B, T, D), [(layer, output (B, T, D)) of the exits below]), olens (B,), None``
        """
        outputs = list(self.iter_exits(xs_pad, ilens))
        below = [(output.layer, output.hs) for output in outputs[:-1]]
        return (outputs[-1].hs, below), outputs[-1].olens, None

    def add_exit_norms(self, exit_norm: str) -> None:
        """Makes the norms of the exits below the final one, which keeps the stock ``after_norm``.

        Args:
            exit_norm: ``"shared"`` (all exits use ``after_norm``, as ESPnet's InterCTC), ``"separate"`` (a norm per
                exit) or ``"none"`` (as the InterCTC of ESPnet's E-Branchformer, whose blocks end in a norm).
        """
        if exit_norm not in ("shared", "separate", "none"):
            raise UsageError(f"encoder_conf: exit_norm is {exit_norm!r}; it may be shared, separate or none")
        self.exit_norm = exit_norm
        own = self.exit_layers[:-1] if exit_norm == "separate" and hasattr(self, "after_norm") else ()
        self.exit_norms = torch.nn.ModuleDict({str(layer): LayerNorm(self.output_size()) for layer in own})


def check_padding_safe(stock: dict[str, Any]) -> None:
    """Refuses stock settings with which an utterance's output would depend on what it is batched with.

    Args:
        stock: keywords of a stock constructor.

    Raises:
        UsageError: names the setting and its allowed values.
    """
    for name, allowed in _PADDING_SAFE.items():
        if name in stock and stock[name] not in allowed:
            choice = f"use {allowed[0]}" if len(allowed) == 1 else f"use one of {', '.join(allowed)}"
            raise UsageError(
                f"encoder_conf: {name} {stock[name]!r} cannot be used: outputs would depend on the padding; {choice}"
            )


def check_exit_layers(exit_layers: Sequence[int], num_blocks: int) -> tuple[int, ...]:
    """Returns the exit layers as a tuple when they fit the encoder.

    Args:
        exit_layers: 1-based block numbers, rising; the last block must be among them.
        num_blocks: blocks of the encoder.

    Raises:
        UsageError: not whole numbers, not rising, beyond the last block, or without the last block.
    """
    layers = tuple(exit_layers)
    if not layers or any(isinstance(layer, bool) or not isinstance(layer, int) for layer in layers):
        raise UsageError(f"encoder_conf: exit_layers is {exit_layers!r}; give block numbers such as [2, 4, {num_blocks}]")
    if any(a >= b for a, b in pairwise(layers)) or layers[0] < 1:
        raise UsageError(f"encoder_conf: exit_layers {list(layers)} must rise, from 1 on")
    if layers[-1] > num_blocks:
        raise UsageError(f"encoder_conf: exit layer {layers[-1]} is beyond the last block; num_blocks is {num_blocks}")
    if layers[-1] != num_blocks:
        raise UsageError(f"encoder_conf: exit_layers {list(layers)} lack the last block; add {num_blocks} or lower num_blocks")
    return layers


def strided_lengths(lengths: torch.Tensor, convolutions: Sequence[torch.nn.Module]) -> torch.Tensor:
    """Frames left of each utterance after a stack of convolutions over time, from its own length alone.

    Args:
        lengths: input frames (B,).
        convolutions: unpadded Conv1d or Conv2d modules, time being the first convolved axis.
    """
    for convolution in convolutions:
        kernel, stride = convolution.kernel_size[0], convolution.stride[0]
        lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
    return lengths
