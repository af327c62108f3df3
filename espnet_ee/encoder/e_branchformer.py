"""Early-exit E-Branchformer over ``espnet2.asr.encoder.e_branchformer_encoder.EBranchformerEncoder``."""

from __future__ import annotations

from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder

from espnet_ee.encoder.espnet_blocks import REPLACED, BlockListEncoder
from espnet_ee.host.signature import extend_signature


@extend_signature(EBranchformerEncoder, without=REPLACED)
class EarlyExitEBranchformerEncoder(BlockListEncoder, EBranchformerEncoder):
    """ESPnet's E-Branchformer, computed segment by segment.

    Its stock InterCTC takes a block's output without ``after_norm`` (every block ends in a norm already):
    with ``exit_norm: none`` parameters and outputs are those of the stock encoder with
    ``interctc_layer_idx`` = the exit layers without the last one.

    Takes what the stock constructor takes and what :class:`BlockListEncoder` adds. With ``layer_drop_rate``, in training, each
    block is left out so often, as in stock; an exit after it reads what came in.
    """

    drops_layers = True
