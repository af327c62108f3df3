"""CTC heads of the exits: a linear layer per exit, or one for all.

The final exit's head is ESPnet's own ``model.ctc``, under its stock name, so that stock tools find it.
A new kind of head is one function here and one line in ``HEADS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from espnet2.asr.ctc import CTC

from espnet_ee.errors import UsageError


def shared_heads(layers: Sequence[int], ctc: CTC) -> dict[str, CTC]:
    """No heads of their own: every exit uses the final one (ESPnet InterCTC)."""
    return {}


def separate_heads(layers: Sequence[int], ctc: CTC) -> dict[str, CTC]:
    """One linear CTC head for each exit below the final one (arXiv 2309.09546)."""
    size, vocabulary = ctc.ctc_lo.in_features, ctc.ctc_lo.out_features
    return {str(layer): CTC(vocabulary, size, dropout_rate=ctc.dropout_rate) for layer in layers}


HEADS: dict[str, Callable[[Sequence[int], CTC], dict[str, CTC]]] = {
    "separate": separate_heads,
    "shared": shared_heads,
}


def make_heads(kind: str, layers: Sequence[int], ctc: CTC) -> torch.nn.ModuleDict:
    """Makes the heads of the exits below the final one.

    Args:
        kind: a key of ``HEADS``.
        layers: exit layers without the final one.
        ctc: the final exit's head.

    Raises:
        UsageError: unknown kind.
    """
    if not isinstance(kind, str) or kind not in HEADS:
        raise UsageError(f"model_conf: exit_heads {kind!r} is not one of {', '.join(sorted(HEADS))}")
    return torch.nn.ModuleDict(HEADS[kind](layers, ctc))
