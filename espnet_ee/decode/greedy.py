"""Greedy CTC and the evidence of an exit, in one pass over its log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from espnet_ee.policy.evidence import ExitEvidence

Path = np.ndarray  # (T,) the best token of every real frame
Frames = tuple[Path, np.ndarray, np.ndarray]  # best token, its log-probability, entropy of every real frame: (T,) each
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
    # What follows is paid at every exit of every utterance: see "deciding" in tools/bench_encoder.py.
    reduced = (_reduce if log_probs.device.type == "cpu" else _reduce_on_device)(log_probs, olens.tolist())
    readings = []
    for row, (labels, best, entropy) in enumerate(reduced):
        frames = len(labels)
        before = previous[row] if previous else None
        changed = math.nan if before is None or not frames else np.count_nonzero(labels != before) / frames
        statistics = _statistics(labels, best, entropy, blank, log_probs.size(-1)) if frames else _NOTHING
        readings.append((ExitEvidence(layer=layer, frames=frames, changed_share=changed, **statistics), labels))
    return readings


def _reduce(log_probs: torch.Tensor, olens: Sequence[int]) -> Iterator[Frames]:
    """Reduces (B, T, V) on the CPU, where NumPy takes less than half of torch's time."""
    array = log_probs.numpy()
    for row, frames in enumerate(olens):
        real = array[row, :frames]
        entropy = -np.einsum("tv,tv->t", np.exp(real), real)
        if math.isnan(np.add.reduce(entropy)):
            # A token without any probability adds 0 to the entropy, not 0 * -inf: rare, so looked for afterwards.
            entropy = -np.einsum("tv,tv->t", np.exp(real), np.maximum(real, np.finfo(real.dtype).min))
        labels = real.argmax(axis=-1)
        yield labels, real[np.arange(frames), labels], entropy


def _reduce_on_device(log_probs: torch.Tensor, olens: Sequence[int]) -> Iterator[Frames]:
    """Reduces (B, T, V) where it lies: only three numbers per frame are copied, once for the batch."""
    best, path = log_probs.max(dim=-1)
    entropy = -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(dim=-1)
    rows = (path.cpu().numpy(), best.cpu().numpy(), entropy.cpu().numpy())
    for row, frames in enumerate(olens):
        labels, best_row, entropy_row = (values[row, :frames] for values in rows)
        yield labels, best_row, entropy_row


def _statistics(labels: Path, best: np.ndarray, entropy: np.ndarray, blank: int, vocabulary: int) -> dict[str, Any]:
    """The statistics of one utterance of a frame or more; see :data:`Frames`."""
    # On so few numbers a call costs more than its work: ufuncs' own reductions are several times cheaper than mean() and max().
    frames, sure, total = len(labels), np.exp(best), np.add.reduce
    starts = np.concatenate((_FIRST, (labels[1:] != labels[:-1]).nonzero()[0] + 1))
    runs = labels[starts]
    spoken_runs, spoken = runs != blank, labels != blank
    count = np.count_nonzero(spoken)
    tail = math.ceil(_TAIL * frames)
    return {
        "tokens": tuple(runs[spoken_runs].tolist()),
        "entropy": float(total(entropy)) / (frames * vocabulary),
        "confidence": float(total(sure)) / frames,
        "blank_share": 1.0 - count / frames,
        "score": float(total(best)),
        "entropy_tail": float(total(np.partition(entropy, frames - tail)[-tail:])) / (tail * vocabulary),
        "spoken_confidence": float(total(sure[spoken])) / count if count else math.nan,
        "token_confidence": float(np.minimum.reduce(np.maximum.reduceat(sure, starts)[spoken_runs])) if count else math.nan,
    }


_FIRST = np.zeros(1, int)
_NOTHING = {"tokens": (), "score": 0.0, **dict.fromkeys(("entropy", "confidence", "blank_share"), math.nan)}
