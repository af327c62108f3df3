"""Early-exit conformer over ``espnet2.asr.encoder.conformer_encoder.ConformerEncoder``."""

from __future__ import annotations

from espnet2.asr.encoder.conformer_encoder import ConformerEncoder

from espnet_ee.encoder.espnet_blocks import LAYER_DROP, REPLACED, BlockListEncoder
from espnet_ee.host.signature import extend_signature


@extend_signature(ConformerEncoder, without=(*REPLACED, LAYER_DROP), defaults={"rel_pos_type": "latest"})
class EarlyExitConformerEncoder(BlockListEncoder, ConformerEncoder):
    """ESPnet's conformer, computed segment by segment.

    With ``exit_norm: shared`` its parameters and its outputs are those of the stock conformer with
    ``interctc_layer_idx`` = the exit layers without the last one. Unlike the stock conformer of
    ESPnet 202511, outputs and olens of an utterance never depend on its neighbours in the batch.

    Args:
        input_size: feature dimension.
        exit_layers: 1-based numbers of the blocks that an exit follows; the last block is one of them.
        exit_norm: ``"shared"`` (one norm before every head, ESPnet InterCTC's way), ``"separate"`` or ``"none"``.
        rel_pos_type: as stock, but ``"latest"`` by default; with ``"legacy"`` a batch is computed length by length.
        stock: every other keyword of the stock constructor.

    Example:
        >>> import torch
        >>> encoder = EarlyExitConformerEncoder(80, [1, 2], output_size=8, attention_heads=2, num_blocks=2)
        >>> exits = encoder.iter_exits(torch.randn(3, 64, 80), torch.tensor([64, 50, 20]))
        >>> first = next(exits)  # block 2 has not been computed
        >>> first.layer, tuple(first.hs.shape), first.olens.tolist()
        (1, (3, 15, 8), [15, 11, 4])
    """
