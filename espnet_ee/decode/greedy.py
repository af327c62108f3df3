"""Greedy CTC and the evidence of an exit, in one pass over its log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from espnet_ee.policy.evidence import ExitEvidence

Path = np.ndarray  # (T,) the best token of every real frame
_TAIL = 0.1


def read_exit(layer: int, log_probs: torch.Tensor, olens: torch.Tensor, blank: int = 0) -> list[ExitEvidence]:
    """Reads what one exit says of every utterance of a batch, without an exit before: see :func:`read_frames`."""
    return [evidence for evidence, _ in read_frames(layer, log_probs, olens, blank)]


def read_frames(
    layer: int,
    log_probs: torch.Tensor,
    olens: torch.Tensor,
    blank: int = 0,
    previous: Sequence[Path | None] | None = None,
) -> list[tuple[ExitEvidence, Path]]:
    """Reads what one exit says of every utterance of a batch.

    Args:
        layer: the exit's block, 1-based.
        log_probs: (B, T, V), natural logarithms.
        olens: real frames (B,); what lies behind them is not looked at.
        blank: blank id.
        previous: for every utterance its frames' best tokens at the exit before, None at the first exit.

    Returns:
        For every utterance its evidence and its frames' best tokens. Mean frame entropy:
        xi = -1/(T V) sum_t sum_v p log p (arXiv 2309.09546). An utterance without frames has NaN statistics, which
        no policy stops at.
    """
    best, path = log_probs.max(dim=-1)
    # Clamped: a token without any probability adds 0 to the entropy, not 0 * -inf.
    entropy = -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(dim=-1)
    # One copy for the batch; what follows are a few operations on T numbers for each utterance.
    best_rows, path_rows = best.double().cpu().numpy(), path.cpu().numpy()
    entropy_rows = entropy.double().cpu().numpy() / log_probs.size(-1)
    readings = []
    for row, frames in enumerate(olens.tolist()):
        labels = path_rows[row, :frames]
        statistics = _statistics(best_rows[row, :frames], entropy_rows[row, :frames], labels, blank)
        before = previous[row] if previous else None
        changed = math.nan if before is None or not frames else float(np.mean(labels != before))
        readings.append((ExitEvidence(layer=layer, frames=frames, changed_share=changed, **statistics), labels))
    return readings


def _statistics(best: np.ndarray, entropy: np.ndarray, labels: Path, blank: int) -> dict[str, Any]:
    """The statistics of one utterance: log-probability, entropy and number of the best token of each frame (T,)."""
    if not len(labels):
        nothing = dict.fromkeys(("entropy", "confidence", "blank_share"), math.nan)
        return {"tokens": (), "score": 0.0, **nothing}
    sure = np.exp(best)
    starts = np.flatnonzero(np.concatenate(([True], labels[1:] != labels[:-1])))
    spoken_runs = labels[starts] != blank
    spoken = labels != blank
    some = bool(spoken_runs.any())
    tail = max(1, math.ceil(_TAIL * len(labels)))
    return {
        "tokens": tuple(labels[starts[spoken_runs]].tolist()),
        "entropy": float(entropy.mean()),
        "confidence": float(sure.mean()),
        "blank_share": 1.0 - float(spoken.mean()),
        "score": float(best.sum()),
        "entropy_tail": float(np.partition(entropy, len(entropy) - tail)[-tail:].mean()),
        "spoken_confidence": float(sure[spoken].mean()) if some else math.nan,
        "token_confidence": float(np.maximum.reduceat(sure, starts)[spoken_runs].min()) if some else math.nan,
    }
