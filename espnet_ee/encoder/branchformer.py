"""Early-exit Branchformer over ``espnet2.asr.encoder.branchformer_encoder.BranchformerEncoder``."""

from __future__ import annotations

from typing import Any

import torch
from espnet2.asr.encoder.branchformer_encoder import BranchformerEncoder

from espnet_ee.compute import BranchformerShape
from espnet_ee.encoder.base import EarlyExitEncoder
from espnet_ee.errors import UserError
from espnet_ee.host.signature import extend_signature


@extend_signature(BranchformerEncoder)
class EarlyExitBranchformerEncoder(EarlyExitEncoder, BranchformerEncoder):
    """ESPnet's Branchformer (which has no InterCTC of its own), computed segment by segment.

    Takes what the stock constructor takes and what :class:`EarlyExitEncoder` adds.
    """

    def shape(self) -> BranchformerShape:
        """What decides this encoder's compute; see :mod:`espnet_ee.compute`."""
        if not all(block.use_two_branches for block in self.encoders):
            raise UserError("encoder_conf: compute is counted for branchformer blocks with both branches only")
        block = self.encoders[0]
        return BranchformerShape(
            **self.front_shape(),
            **gating_shape(block.attn, block.cgmlp),
            feed_forward=0,
            feed_forwards=0,
            merge=block.merge_method,
            merge_kernel=0,
        )


def gating_shape(attention: torch.nn.Module, cgmlp: torch.nn.Module) -> dict[str, Any]:
    """The part of a shape that Branchformer and E-Branchformer share: their two branches."""
    return {
        "relative": hasattr(attention, "linear_pos"),
        "concat_after": False,
        "kernel": cgmlp.csgu.conv.kernel_size[0],
        "gate_units": cgmlp.channel_proj1[0].out_features,
        "gate_linear": cgmlp.csgu.linear is not None,
    }
