"""Early-exit conformer over ``espnet2.asr.encoder.conformer_encoder.ConformerEncoder``."""

from __future__ import annotations

from typing import Any

import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

from espnet_ee.encoder.base import EarlyExitEncoder, EncoderState, check_exit_layers, strided_lengths
from espnet_ee.errors import UsageError, UserError
from espnet_ee.plugin.compat import (
    check_short_utt,
    extend_signature,
    make_pad_mask,
    mask_convolution,
    reject_unknown_keys,
)
from espnet_ee.score.compute import ConformerShape, Convolution

# What exit_layers stands for, and what no early exit can honour.
_REPLACED = ("interctc_layer_idx", "interctc_use_conditioning", "ctc_trim", "layer_drop_rate")


@extend_signature(ConformerEncoder, without=_REPLACED)
class EarlyExitConformerEncoder(EarlyExitEncoder, ConformerEncoder):
    """ESPnet's conformer, computed segment by segment.

    With ``exit_norm: shared`` its parameters and its outputs are those of the stock conformer with
    ``interctc_layer_idx`` = the exit layers without the last one. Unlike the stock conformer of
    ESPnet 202511, outputs and olens of an utterance never depend on its neighbours in the batch.

    Args:
        input_size: feature dimension.
        exit_layers: 1-based numbers of the blocks that an exit follows; the last block is one of them.
        exit_norm: ``"shared"`` (one norm before every head, ESPnet InterCTC's way) or ``"separate"``.
        rel_pos_type: as stock, but ``"latest"`` by default; ``"legacy"`` positions depend on the padding.
        stock: every other keyword of the stock constructor.

    Example:
        >>> encoder = EarlyExitConformerEncoder(80, [1, 2], output_size=8, attention_heads=2, num_blocks=2)
        >>> exits = encoder.iter_exits(torch.randn(3, 64, 80), torch.tensor([64, 50, 20]))
        >>> first = next(exits)  # block 2 has not been computed
        >>> first.layer, tuple(first.hs.shape), first.olens.tolist()
        (1, (3, 15, 8), [15, 11, 4])
    """

    def __init__(
        self,
        input_size: int,
        exit_layers: list[int] = [],  # noqa: B006 - ESPnet shows it in --print_config
        exit_norm: str = "shared",
        rel_pos_type: str = "latest",
        **stock: Any,
    ) -> None:
        reject_unknown_keys(type(self), "encoder_conf", stock)
        if rel_pos_type != "latest":
            raise UsageError(
                f"encoder_conf: rel_pos_type {rel_pos_type!r} makes outputs depend on the padding; use latest"
            )
        if stock.get("input_layer", "conv2d") == "embed" or not isinstance(stock.get("input_layer", "conv2d"), str):
            raise UsageError("encoder_conf: input_layer must be linear or one of the conv2d subsampling layers")
        super().__init__(input_size, rel_pos_type=rel_pos_type, **stock)
        self.input_size = input_size
        self.exit_layers = check_exit_layers(exit_layers, len(self.encoders))
        self.interctc_layer_idx = list(self.exit_layers[:-1])
        self.add_exit_norms(exit_norm)
        for block in self.encoders:
            mask_convolution(block)

    @property
    def min_frames(self) -> int:
        """Feature frames that an utterance needs to leave one frame after subsampling."""
        return max(1, check_short_utt(self.embed, 0)[1])

    def start(self, xs_pad: torch.Tensor, ilens: torch.Tensor) -> EncoderState:
        """Subsamples and adds positions; see :meth:`EarlyExitEncoder.start`."""
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
        masks = ~make_pad_mask(olens, maxlen=xs.size(1))[:, None, :].to(xs.device)
        return EncoderState(xs, pos_emb, masks, olens)

    def shape(self) -> ConformerShape:
        """What decides this encoder's compute; see :mod:`espnet_ee.score.compute`."""
        block = self.encoders[0]
        if not hasattr(block.feed_forward, "w_1") or block.feed_forward.w_1.weight.dim() != 2:
            raise UserError("positionwise_layer_type: compute is counted for linear feed-forward layers only")
        kernel = block.conv_module.depthwise_conv.kernel_size[0] if block.conv_module is not None else 0
        return ConformerShape(
            input_size=self.input_size,
            width=self.output_size(),
            feed_forward=block.feed_forward.w_1.out_features,
            feed_forwards=1 if block.feed_forward_macaron is None else 2,
            kernel=kernel,
            relative=hasattr(block.self_attn, "linear_pos"),
            concat_after=block.concat_after,
            blocks=len(self.encoders),
            convolutions=tuple(
                Convolution(layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0])
                for layer in self._convolutions()
            ),
        )

    def _convolutions(self) -> list[torch.nn.Conv2d]:
        layers = getattr(self.embed, "conv", ())
        return [layer for layer in layers if isinstance(layer, torch.nn.Conv2d)]
