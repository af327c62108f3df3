"""Early-exit E-Branchformer over ``espnet2.asr.encoder.e_branchformer_encoder.EBranchformerEncoder``."""

from __future__ import annotations

from typing import Any

from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder

from espnet_ee.encoder.base import REPLACED, EarlyExitEncoder, check_padding_safe
from espnet_ee.encoder.branchformer import gating_shape
from espnet_ee.plugin.compat import extend_signature, reject_unknown_keys
from espnet_ee.score.compute import BranchformerShape


@extend_signature(EBranchformerEncoder, without=REPLACED)
class EarlyExitEBranchformerEncoder(EarlyExitEncoder, EBranchformerEncoder):
    """ESPnet's E-Branchformer, computed segment by segment.

    Its stock InterCTC takes a block's output without ``after_norm`` (every block ends in a norm already):
    with ``exit_norm: none`` parameters and outputs are those of the stock encoder with
    ``interctc_layer_idx`` = the exit layers without the last one.

    Args:
        input_size: feature dimension.
        exit_layers: 1-based numbers of the blocks that an exit follows; the last block is one of them.
        exit_norm: ``"shared"``, ``"separate"`` or ``"none"``; see :meth:`EarlyExitEncoder.add_exit_norms`.
        stock: every other keyword of the stock constructor.
    """

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
        self.add_exits(input_size, exit_layers, exit_norm)

    def shape(self) -> BranchformerShape:
        """What decides this encoder's compute; see :mod:`espnet_ee.score.compute`."""
        block = self.encoders[0]
        modules = [part for part in (block.feed_forward, block.feed_forward_macaron) if part is not None]
        return BranchformerShape(
            **self.front_shape(),
            **gating_shape(block.attn, block.cgmlp),
            feed_forward=modules[0].w_1.out_features if modules else 0,
            feed_forwards=len(modules),
            merge="concat",
            merge_kernel=block.depthwise_conv_fusion.kernel_size[0],
        )
