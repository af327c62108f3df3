"""Early-exit Branchformer over ``espnet2.asr.encoder.branchformer_encoder.BranchformerEncoder``."""

from __future__ import annotations

from espnet2.asr.encoder.branchformer_encoder import BranchformerEncoder

from espnet_ee.encoder.espnet_blocks import BlockListEncoder
from espnet_ee.host.signature import extend_signature


@extend_signature(BranchformerEncoder)
class EarlyExitBranchformerEncoder(BlockListEncoder, BranchformerEncoder):
    """ESPnet's Branchformer (which has no InterCTC of its own), computed segment by segment.

    Takes what the stock constructor takes and what :class:`BlockListEncoder` adds.
    """
