"""Early-exit transformer over ``espnet2.asr.encoder.transformer_encoder.TransformerEncoder``."""

from __future__ import annotations

from typing import Any

from espnet2.asr.encoder.transformer_encoder import TransformerEncoder

from espnet_ee.encoder.base import REPLACED, EarlyExitEncoder, check_padding_safe
from espnet_ee.plugin.compat import extend_signature, reject_unknown_keys
from espnet_ee.score.compute import ConformerShape


@extend_signature(TransformerEncoder, without=REPLACED)
class EarlyExitTransformerEncoder(EarlyExitEncoder, TransformerEncoder):
    """ESPnet's transformer, computed segment by segment.

    With ``exit_norm: shared`` its parameters and its outputs are those of the stock transformer with
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
