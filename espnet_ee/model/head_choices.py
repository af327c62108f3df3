"""The kinds of exit heads that a configuration can name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from espnet2.asr.ctc import CTC

from espnet_ee.errors import UsageError
from espnet_ee.model.deep_heads import ConvolutionHead, LSTMHead
from espnet_ee.model.heads import ExitHead, separate_head

# model_conf: exit_heads. None: no heads below the final exit, whose one serves all (ESPnet InterCTC).
HEADS: dict[str, Callable[[int, int, float], ExitHead] | None] = {
    "separate": separate_head,
    "shared": None,
    "lstm": LSTMHead,
    "convolution": ConvolutionHead,
}


def make_heads(kind: str, layers: Sequence[int], ctc: CTC) -> torch.nn.ModuleDict:
    """Makes the heads of the exits below the final one, whose layers are given; ``ctc`` is that one's.

    Raises:
        UsageError: the kind is none of ``HEADS``.
    """
    if not isinstance(kind, str) or kind not in HEADS:
        raise UsageError(f"model_conf: exit_heads {kind!r} is not one of {', '.join(sorted(HEADS))}")
    head = HEADS[kind]
    if head is None:
        return torch.nn.ModuleDict()
    sizes = ctc.ctc_lo.in_features, ctc.ctc_lo.out_features
    return torch.nn.ModuleDict({str(layer): head(*sizes, ctc.dropout_rate) for layer in layers})
