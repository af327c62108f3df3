"""Greedy CTC and the evidence of an exit, in one pass over its log-probabilities."""

from __future__ import annotations

import torch

from espnet_ee.policy.evidence import ExitEvidence
from espnet_ee.text import collapse


def read_exit(layer: int, log_probs: torch.Tensor, olens: torch.Tensor, blank: int = 0) -> list[ExitEvidence]:
    """Reads what one exit says of every utterance of a batch.

    Args:
        layer: the exit's block, 1-based.
        log_probs: (B, T, V), natural logarithms.
        olens: real frames (B,); what lies behind them is not looked at.
        blank: blank id.

    Returns:
        One evidence per utterance. Mean frame entropy: xi = -1/(T V) sum_t sum_v p log p (arXiv 2309.09546).
        An utterance without frames has NaN statistics, which no policy stops at.
    """
    best, path = log_probs.max(dim=-1)
    # Clamped: a token without any probability adds 0 to the entropy, not 0 * -inf.
    entropy = -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(dim=-1)
    evidence = []
    for row, frames in enumerate(olens.tolist()):
        tokens = path[row, :frames].tolist()
        evidence.append(
            ExitEvidence(
                layer=layer,
                tokens=tuple(collapse(tokens, blank)),
                entropy=_mean(entropy[row, :frames]) / log_probs.size(-1),
                confidence=_mean(best[row, :frames].exp()),
                blank_share=tokens.count(blank) / frames if frames else float("nan"),
                score=float(best[row, :frames].double().sum()),
                frames=frames,
            )
        )
    return evidence


def _mean(values: torch.Tensor) -> float:
    return float(values.double().mean())
