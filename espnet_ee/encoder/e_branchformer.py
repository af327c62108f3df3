"""Early-exit E-Branchformer over ``espnet2.asr.encoder.e_branchformer_encoder.EBranchformerEncoder``."""

from __future__ import annotations

from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder

from espnet_ee.compute import BranchformerShape
from espnet_ee.encoder.base import REPLACED, EarlyExitEncoder
from espnet_ee.encoder.branchformer import gating_shape
from espnet_ee.host.signature import extend_signature


@extend_signature(EBranchformerEncoder, without=REPLACED)
class EarlyExitEBranchformerEncoder(EarlyExitEncoder, EBranchformerEncoder):
    """ESPnet's E-Branchformer, computed segment by segment.

    Its stock InterCTC takes a block's output without ``after_norm`` (every block ends in a norm already):
    with ``exit_norm: none`` parameters and outputs are those of the stock encoder with
    ``interctc_layer_idx`` = the exit layers without the last one.

    Takes what the stock constructor takes and what :class:`EarlyExitEncoder` adds.
    """

    def shape(self) -> BranchformerShape:
        """What decides this encoder's compute; see :mod:`espnet_ee.compute`."""
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
