"""What ESPnet's encoders with a plain list of blocks share: conformer, transformer, (E-)Branchformer, multi-convolution."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, cast

import torch

from espnet_ee.encoder.base import (
    EncoderState,
    ExitOutput,
    SegmentEncoder,
    left_out,
    real_frames,
)
from espnet_ee.errors import UsageError, UserError
from espnet_ee.host.compat import (
    LayerNorm,
    accept_either_version,
    call_block,
    has_legacy_positions,
    isolate_calls,
    legacy_positions,
    make_pad_mask,
    traced_embed,
    traced_positions,
    with_positions,
)
from espnet_ee.host.signature import reject_unknown_keys
from espnet_ee.subsampling import Convolutions

# What exit_layers stands for, and what no early exit can honour, each with the value that changes nothing; a recipe may
# write that down, and no encoder of ours shows it.
REPLACED: dict[str, Any] = {
    "interctc_layer_idx": [],
    "ctc_trim": False,
    "gradient_checkpoint_layers": [],
}
# ESPnet's conformer and transformer take it, and drop nothing; ours do not show it.
LAYER_DROP = "layer_drop_rate"
INPUT_LAYERS = ("linear", "conv2d", "conv2d1", "conv2d2", "conv2d6", "conv2d8", "conv1d1", "conv1d2", "conv1d3")
# The values of a stock setting with which no frame sees another utterance's padding.
_PADDING_SAFE = {
    "rel_pos_type": ("latest", "legacy"),
    "input_layer": INPUT_LAYERS,
    "pos_enc_layer_type": ("rel_pos", "abs_pos", "scaled_abs_pos", "legacy_rel_pos"),
    "attention_layer_type": ("rel_selfattn", "selfattn", "legacy_rel_selfattn"),
    "selfattention_layer_type": ("rel_selfattn", "selfattn", "legacy_rel_selfattn"),
    "positionwise_layer_type": ("linear",),
}


@dataclass(frozen=True)
class BlockCarry:
    """What ESPnet's blocks take beside the hidden states.

    Attributes:
        positions: relative positional embedding (1, 2T-1, D), or None where positions are added to the hidden states.
        masks: True on real frames (B, 1, T), or None where every frame is real: then no block needs to mask.
        logits: of a conditioned encoder, what the head of the exit that was just passed gave (B, T, V).
    """

    positions: torch.Tensor | None
    masks: torch.Tensor | None
    logits: torch.Tensor | None = None

    def select(self, rows: torch.Tensor, frames: int) -> BlockCarry:
        positions, masks = self.positions, self.masks
        if positions is not None:
            # The embedding runs from distance T-1 to -(T-1): a shorter batch needs the middle.
            cut = (positions.size(1) + 1) // 2 - frames
            positions = positions[:, cut : positions.size(1) - cut]
        if masks is not None:
            masks = masks[rows, :, :frames]
            masks = None if bool(masks.all()) else masks
        return BlockCarry(positions, masks, None if self.logits is None else self.logits[rows, :frames])


@dataclass(frozen=True)
class _StockHead:
    """ESPnet's one head as that of every exit."""

    ctc: Any

    def logits(self, layer: int, hs: torch.Tensor, olens: torch.Tensor) -> torch.Tensor:
        return self.ctc.ctc_lo(hs)


class BlockListEncoder(SegmentEncoder):
    """Mixin before an ESPnet encoder class that has a plain list of blocks ``self.encoders``.

    The stock parameters keep their stock names. With ``interctc_use_conditioning`` block k+1 above an exit k reads what the
    exit's head says: a stop at k has computed that anyway, and whoever goes on has paid it once.

    Args:
        input_size: feature dimension.
        exit_layers: 1-based numbers of the blocks that an exit follows; the last block is one of them.
        exit_norm: ``"shared"``, ``"separate"`` or ``"none"``; see :meth:`add_exit_norms`.
        stock: every other keyword of the stock constructor.

    Raises:
        UsageError: the encoder has no plain list of blocks, the exits do not fit it, or a keyword is unknown or
            would make an utterance's output depend on its neighbours in the batch.
    """

    embed: torch.nn.Module
    encoders: torch.nn.ModuleList
    conditioning_layer: Any  # ESPnet's model makes it, who knows the vocabulary
    drops_layers: ClassVar[bool] = False  # whether layer_drop_rate does something in the stock class
    layer_drop_rate: float

    def __init__(
        self,
        input_size: int,
        exit_layers: list[int] = [],  # noqa: B006 - ESPnet shows it in --print_config
        exit_norm: str = "shared",
        **stock: Any,
    ) -> None:
        stock = effective(stock, self.drops_layers)
        reject_unknown_keys(type(self), "encoder_conf", stock)
        check_padding_safe(stock)
        super().__init__(input_size, **stock)
        blocks: Any = getattr(self, "encoders", None)
        listed = isinstance(blocks, (torch.nn.ModuleList, torch.nn.Sequential)) and len(blocks) > 0
        if not listed or not isinstance(getattr(self, "embed", None), torch.nn.Module):
            raise UsageError(
                f"encoder: {type(self).__name__} has no plain list of blocks and cannot be driven block by block; "
                "use a conformer, transformer, branchformer, e_branchformer or multiconv_conformer"
            )
        self.input_size = input_size
        self.layer_drop_rate = stock.get(LAYER_DROP, 0.0)
        self.place_exits(exit_layers, len(blocks))
        self.conditioned = bool(getattr(self, "interctc_use_conditioning", False))
        self.add_exit_norms(exit_norm)
        accept_either_version(self)
        self.legacy = has_legacy_positions(self.embed)
        isolate_calls(self.encoders)

    @property
    def subsampling(self) -> Convolutions:
        """Nothing for ``input_layer: linear``."""
        layers = getattr(self.embed, "conv", ())
        kinds = (torch.nn.Conv2d, torch.nn.Conv1d)
        return tuple((layer.kernel_size[0], layer.stride[0]) for layer in layers if isinstance(layer, kinds))

    def embed_frames(self, xs: torch.Tensor, ilens: torch.Tensor) -> EncoderState:
        embed = with_positions(self.embed, int(self.frames_of(torch.tensor(xs.size(1)))))
        if embed is not self.embed and not self.legacy:  # the older positions are read from the end of the table
            self.embed = embed
        hidden = embed(xs, None)[0] if self.subsampling else embed(xs)
        hidden, positions = hidden if isinstance(hidden, tuple) else (hidden, None)
        if self.legacy and not self.training:
            positions = None  # each utterance has its own, see `block`
        # ESPnet 202511 counts frames on the padded length; ours come from each utterance's own.
        olens = self.frames_of(ilens).clamp(max=hidden.size(1))
        padded = int(olens.min()) < hidden.size(1)
        masks = ~make_pad_mask(olens, maxlen=hidden.size(1))[:, None, :].to(hidden.device) if padded else None
        return EncoderState(hidden, olens, BlockCarry(positions, masks))

    def block(self, number: int, state: EncoderState) -> EncoderState:
        """Computes one block, or in training leaves it out as ``layer_drop_rate`` says."""
        dropped = self.training and self.layer_drop_rate > 0 and torch.empty(1).uniform_().item() < self.layer_drop_rate
        compute = partial(self._computed, self.encoders[number - 1], state)
        return replace(state, hidden=left_out(state.hidden, compute) if dropped else compute())

    def _computed(self, block: torch.nn.Module, state: EncoderState) -> torch.Tensor:
        carry = cast(BlockCarry, state.carry)
        if carry.positions is not None:
            return call_block(block, (state.hidden, carry.positions), carry.masks)[0]
        if self.legacy:
            return self._by_length(block, state.hidden, state.olens)
        return call_block(block, state.hidden, carry.masks)

    def _by_length(self, block: torch.nn.Module, hidden: torch.Tensor, olens: torch.Tensor) -> torch.Tensor:
        """Computes a block for each length of the batch on its own: ESPnet's older relative positions look at the length of what is
        computed, padding included. In training they do so here, too, as every such checkpoint was trained."""
        lengths = sorted(set(olens.tolist()) - {0})
        parts = []
        for length in lengths:
            rows = (olens == length).nonzero()[:, 0].to(hidden.device)
            positions = legacy_positions(self.embed, length).to(hidden)
            parts.append((rows, length, call_block(block, (hidden[rows, :length], positions), None)[0]))
        if len(parts) == 1 and lengths[0] == hidden.size(1) and len(parts[0][0]) == len(hidden):
            return parts[0][2]
        result = torch.zeros_like(hidden)
        for rows, length, values in parts:
            result[rows, :length] = values
        return result

    def exit_norm_of(self, layer: int) -> torch.nn.Module | None:
        """Its own, or the stock ``after_norm``."""
        if str(layer) in self.exit_norms:
            return self.exit_norms[str(layer)]
        if self.exit_norm == "none" and layer != self.exit_layers[-1]:
            return None
        return getattr(self, "after_norm", None)  # stock makes none with normalize_before: false

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

    # --- conditioned on the exits below ---------------------------------------------------------------------------------

    def advance(self, state: EncoderState) -> ExitOutput:
        """Computes the blocks up to the next exit, of a conditioned encoder also the exit's head."""
        if not self.conditioned:
            return super().advance(state)
        if self.heads is None:
            raise UsageError("interctc_use_conditioning: such an encoder reads the heads of its exits; compute it in its model")
        below = cast(BlockCarry, state.carry).logits
        if below is not None:
            state = replace(state, hidden=state.hidden + self.conditioning_layer(below.softmax(dim=-1)))
        output = super().advance(state)
        logits = self.heads.logits(output.layer, output.hs, output.olens)
        carry = replace(cast(BlockCarry, output.state.carry), logits=logits)
        return replace(output, logits=logits, state=replace(output.state, carry=carry))

    def forward(
        self,
        xs_pad: torch.Tensor,
        ilens: torch.Tensor,
        prev_states: torch.Tensor | None = None,
        ctc: torch.nn.Module | None = None,
    ) -> tuple[tuple[torch.Tensor, list[tuple[int, torch.Tensor]]], torch.Tensor, None]:
        """``ctc`` reads the exits of a conditioned encoder that knows no other heads."""
        if self.conditioned and self.heads is None and ctc is not None:
            self.heads = _StockHead(ctc)
        return super().forward(xs_pad, ilens)

    # --- for ONNX -------------------------------------------------------------------------------------------------------

    def traced_embed(self, xs: torch.Tensor, ilens: torch.Tensor) -> torch.Tensor:
        if self.legacy:
            raise UserError(
                "rel_pos_type: legacy: positions that look at an utterance's length have no ONNX form here; compute it with torch"
            )
        return traced_embed(self.embed, xs)

    def traced_carry(self, hidden: torch.Tensor, olens: torch.Tensor) -> BlockCarry:
        return BlockCarry(traced_positions(self.embed, hidden.size(1)), real_frames(olens, hidden)[:, None])


def effective(settings: Mapping[str, Any], drops_layers: bool) -> dict[str, Any]:
    """The settings of ``encoder_conf`` without those that change nothing; recipes write many of ESPnet's defaults down.

    Raises:
        UsageError: one that changes something and that no early exit can honour.
    """
    left = dict(settings)
    for name, nothing in REPLACED.items():
        if name in left and (value := left.pop(name)) not in (nothing, None):
            place = "name the exits in exit_layers" if name == "interctc_layer_idx" else "an early exit cannot honour it"
            raise UsageError(f"encoder_conf: {name} {value!r}: {place}; remove it")
    if not drops_layers and left.pop(LAYER_DROP, None):
        logging.warning(
            "encoder_conf: %s drops no layers here, nor in ESPnet's class; stochastic_depth_rate does, where it is known",
            LAYER_DROP,
        )
    if left.get("pos_enc_layer_type", "rel_pos") != "rel_pos":
        left.pop("rel_pos_type", None)  # a kind of relative positions, where there are others
    return left


def check_padding_safe(stock: dict[str, Any]) -> None:
    """Raises UsageError for a stock setting with which an utterance's output would depend on what it is batched with."""
    for name, allowed in _PADDING_SAFE.items():
        if name in stock and stock[name] not in allowed:
            choice = f"use {allowed[0]}" if len(allowed) == 1 else f"use one of {', '.join(allowed)}"
            raise UsageError(
                f"encoder_conf: {name} {stock[name]!r} cannot be used: outputs would depend on the padding; {choice}"
            )
