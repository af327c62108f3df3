"""Early-exit multi-convolution conformer over ``espnet2.asr.encoder.multiconvformer_encoder``."""

from __future__ import annotations

from espnet2.asr.encoder.multiconvformer_encoder import MultiConvConformerEncoder

from espnet_ee.encoder.espnet_blocks import REPLACED, BlockListEncoder
from espnet_ee.host.signature import extend_signature


@extend_signature(MultiConvConformerEncoder, without=REPLACED, defaults={"rel_pos_type": "latest"})
class EarlyExitMultiConvConformerEncoder(BlockListEncoder, MultiConvConformerEncoder):
    """ESPnet's conformer with convolutions of several kernel sizes, computed segment by segment.

    With ``exit_norm: shared`` its parameters and its outputs are those of the stock encoder with
    ``interctc_layer_idx`` = the exit layers without the last one.

    Takes what the stock constructor takes and what :class:`BlockListEncoder` adds; ``rel_pos_type`` is ``latest`` by
    default; with ``legacy`` a batch is computed length by length.
    """

    drops_layers = True
