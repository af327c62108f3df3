"""Greedy CTC and the evidence of an exit, in the pass that makes probabilities of a head's output."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from espnet_ee.policy.evidence import ExitEvidence

# Of every real frame, (T,) each: best token, its probability, the logarithm of that, entropy.
Frames = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def read_frames(layer: int, logits: torch.Tensor, olens: torch.Tensor, blank: int = 0) -> list[ExitEvidence]:
    """Reads what one exit says of every utterance of a batch.

    Args:
        layer: the exit's block, 1-based.
        logits: (B, T, V), what the head's linear layer gives (log-probabilities are logits, too).
        olens: real frames (B,); what lies behind them is not looked at.
        blank: blank id.

    Returns:
        For every utterance its evidence. Mean frame entropy:
        xi = -1/(T V) sum_t sum_v p log p (arXiv 2309.09546). An utterance without frames has NaN statistics, which
        no policy stops at.
    """
    # What follows is paid at every exit of every utterance: see "deciding" in tools/bench_encoder.py.
    reduced = (_reduce if logits.device.type == "cpu" else _reduce_on_device)(logits, olens.tolist())
    return [
        ExitEvidence(
            layer, frames=len(numbers[0]), **(_statistics(numbers, blank, logits.size(-1)) if len(numbers[0]) else _NOTHING)
        )
        for numbers in reduced
    ]


def _reduce(logits: torch.Tensor, olens: Sequence[int]) -> Iterator[Frames]:
    """Reduces (B, T, V) on the CPU, where NumPy takes less than half of torch's time.

    -sum p log p = log Z - sum p z of the logits z, and log Z = z_best - log p_best: no second exponential, no logarithm
    but one per frame.
    """
    scores, probabilities = logits.numpy(), logits.softmax(dim=-1).numpy()
    for row, frames in enumerate(olens):
        z, p = scores[row, :frames], probabilities[row, :frames]
        labels = z.argmax(axis=-1)
        best = np.arange(frames), labels
        sure, highest = p[best], z[best]
        with np.errstate(invalid="ignore"):  # 0 * -inf: see below
            mean = np.vecdot(p, z)
        if math.isnan(np.add.reduce(mean)):
            # A token without any probability adds 0 to the entropy, not 0 * -inf: rare, so looked for afterwards.
            mean = np.vecdot(p, np.maximum(z, np.finfo(z.dtype).min))
        log_sure = np.log(sure)
        yield labels, sure, log_sure, highest - mean - log_sure


def _reduce_on_device(logits: torch.Tensor, olens: Sequence[int]) -> Iterator[Frames]:
    """Reduces (B, T, V) where it lies: only four numbers per frame are copied, once for the batch."""
    probabilities = logits.softmax(dim=-1)
    highest, path = logits.max(dim=-1)
    sure = probabilities.gather(-1, path.unsqueeze(-1)).squeeze(-1)
    mean = (probabilities * logits.clamp(min=torch.finfo(logits.dtype).min)).sum(dim=-1)
    log_sure = sure.log()
    reduced = [values.cpu().numpy() for values in (path, sure, log_sure, highest - mean - log_sure)]
    for row, frames in enumerate(olens):
        labels, sure_row, log_row, entropy = (values[row, :frames] for values in reduced)
        yield labels, sure_row, log_row, entropy


def _statistics(reduced: Frames, blank: int, vocabulary: int) -> dict[str, Any]:
    """The statistics of one utterance of a frame or more."""
    labels, sure, log_sure, entropy = reduced
    # On so few numbers a call costs more than its work: ufuncs' own reductions are several times cheaper than mean() and max().
    frames, total = len(labels), np.add.reduce
    starts = np.concatenate((_FIRST, (labels[1:] != labels[:-1]).nonzero()[0] + 1))
    runs = labels[starts]
    spoken_runs, spoken = runs != blank, labels != blank
    count = np.count_nonzero(spoken)
    mean_entropy = float(total(entropy)) / (frames * vocabulary)
    return {
        "tokens": tuple(runs[spoken_runs].tolist()),
        "entropy": 0.0 if mean_entropy < 0 else mean_entropy,  # rounding may leave less than 0; NaN stays
        "confidence": float(total(sure)) / frames,
        "blank_share": 1.0 - count / frames,
        "score": float(total(log_sure)),
        "spoken_confidence": float(total(sure[spoken])) / count if count else math.nan,
        "token_confidence": float(np.minimum.reduce(np.maximum.reduceat(sure, starts)[spoken_runs])) if count else math.nan,
    }


_FIRST = np.zeros(1, int)
_NOTHING = {"tokens": (), "score": 0.0, **dict.fromkeys(("entropy", "confidence", "blank_share"), math.nan)}
