"""ESPnet's own encoders, computed segment by segment.

Each takes what the stock constructor takes and what :class:`BlockListEncoder` adds. With ``exit_norm: shared`` its parameters
and outputs are those of the stock encoder with ``interctc_layer_idx`` = the exit layers without the last one; unlike those of
ESPnet 202511, outputs and olens of an utterance never depend on its neighbours in the batch.
"""

from __future__ import annotations

from espnet2.asr.encoder.branchformer_encoder import BranchformerEncoder
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder
from espnet2.asr.encoder.multiconvformer_encoder import MultiConvConformerEncoder
from espnet2.asr.encoder.transformer_encoder import TransformerEncoder

from espnet_ee.encoder.espnet_blocks import LAYER_DROP, REPLACED, BlockListEncoder
from espnet_ee.host.signature import extend_signature

# The stock default is the older kind, with which a batch is computed length by length.
_POSITIONS = {"rel_pos_type": "latest"}


@extend_signature(ConformerEncoder, without=(*REPLACED, LAYER_DROP), defaults=_POSITIONS)
class EarlyExitConformerEncoder(BlockListEncoder, ConformerEncoder):
    """ESPnet's conformer.

    Example:
        >>> import torch
        >>> encoder = EarlyExitConformerEncoder(80, [1, 2], output_size=8, attention_heads=2, num_blocks=2)
        >>> exits = encoder.iter_exits(torch.randn(3, 64, 80), torch.tensor([64, 50, 20]))
        >>> first = next(exits)  # block 2 has not been computed
        >>> first.layer, tuple(first.hs.shape), first.olens.tolist()
        (1, (3, 15, 8), [15, 11, 4])
    """


@extend_signature(TransformerEncoder, without=(*REPLACED, LAYER_DROP))
class EarlyExitTransformerEncoder(BlockListEncoder, TransformerEncoder):
    """ESPnet's transformer."""


@extend_signature(BranchformerEncoder)
class EarlyExitBranchformerEncoder(BlockListEncoder, BranchformerEncoder):
    """ESPnet's Branchformer, which has no InterCTC of its own."""


@extend_signature(EBranchformerEncoder, without=REPLACED)
class EarlyExitEBranchformerEncoder(BlockListEncoder, EBranchformerEncoder):
    """ESPnet's E-Branchformer.

    Its stock InterCTC takes a block's output without ``after_norm`` (every block ends in a norm already), so ``exit_norm: none``
    is what equals it. With ``layer_drop_rate``, in training, each block is left out so often, as in stock; an exit after it reads
    what came in.
    """

    drops_layers = True


@extend_signature(MultiConvConformerEncoder, without=REPLACED, defaults=_POSITIONS)
class EarlyExitMultiConvConformerEncoder(BlockListEncoder, MultiConvConformerEncoder):
    """ESPnet's conformer with convolutions of several kernel sizes."""

    drops_layers = True
