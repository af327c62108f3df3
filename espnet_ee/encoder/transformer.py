"""Early-exit transformer over ``espnet2.asr.encoder.transformer_encoder.TransformerEncoder``."""

from __future__ import annotations

from espnet2.asr.encoder.transformer_encoder import TransformerEncoder

from espnet_ee.encoder.espnet_blocks import LAYER_DROP, REPLACED, BlockListEncoder
from espnet_ee.host.signature import extend_signature


@extend_signature(TransformerEncoder, without=(*REPLACED, LAYER_DROP))
class EarlyExitTransformerEncoder(BlockListEncoder, TransformerEncoder):
    """ESPnet's transformer, computed segment by segment.

    With ``exit_norm: shared`` its parameters and its outputs are those of the stock transformer with
    ``interctc_layer_idx`` = the exit layers without the last one.

    Takes what the stock constructor takes and what :class:`BlockListEncoder` adds.
    """
