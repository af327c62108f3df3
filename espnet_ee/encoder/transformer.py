"""Early-exit transformer over ``espnet2.asr.encoder.transformer_encoder.TransformerEncoder``."""

from __future__ import annotations

from espnet2.asr.encoder.transformer_encoder import TransformerEncoder

from espnet_ee.compute import ConformerShape
from espnet_ee.encoder.base import REPLACED, EarlyExitEncoder
from espnet_ee.host.signature import extend_signature


@extend_signature(TransformerEncoder, without=REPLACED)
class EarlyExitTransformerEncoder(EarlyExitEncoder, TransformerEncoder):
    """ESPnet's transformer, computed segment by segment.

    With ``exit_norm: shared`` its parameters and its outputs are those of the stock transformer with
    ``interctc_layer_idx`` = the exit layers without the last one.

    Takes what the stock constructor takes and what :class:`EarlyExitEncoder` adds.
    """

    def shape(self) -> ConformerShape:
        """What decides this encoder's compute: a conformer without convolution and relative positions."""
        block = self.encoders[0]
        return ConformerShape(
            **self.front_shape(),
            feed_forward=block.feed_forward.w_1.out_features,
            feed_forwards=1,
            kernel=0,
            relative=False,
            concat_after=block.concat_after,
        )
