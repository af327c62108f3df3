"""What an exit's head says of every frame, and the evidence made of it. NumPy alone: every engine reduces to this."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from espnet_ee.policy.evidence import ExitEvidence


@dataclass(frozen=True)
class Frames:
    """One exit's unpadded frames of one utterance.

    Attributes:
        labels: best token of each frame (T,).
        confidence: its probability (T,).
        log_confidence: the logarithm of that (T,).
        entropy: of each frame's distribution over the tokens, natural log (T,).
        vocabulary: number of tokens V.
        log_probs: log-probabilities (T, V); only where somebody asked for them.
        cluster_entropy: entropy of the cluster head's distribution in each frame (T,), natural log; only where somebody asked for it,
            and of exits that have one.
    """

    labels: np.ndarray
    confidence: np.ndarray
    log_confidence: np.ndarray
    entropy: np.ndarray
    vocabulary: int
    log_probs: np.ndarray | None = None
    cluster_entropy: np.ndarray | None = None


def evidence_of(layer: int, frames: Frames, blank: int, reads: Collection[str]) -> ExitEvidence:
    """The fields of the evidence that somebody reads; the others stay unknown.

    Mean frame entropy: xi = -1/(T V) sum_t sum_v p log p (arXiv 2309.09546). Of an utterance without frames nothing is
    known, so no policy stops at it.

    Args:
        layer: the exit's block, 1-based.
        frames: of one utterance.
        blank: blank id.
        reads: fields of :class:`ExitEvidence`; of those that are not made of frames (``nbest_scores``) there is none here.
    """
    count = len(frames.labels)
    fields = {name: _FIELDS[name](frames, blank) for name in _FIELDS if name in reads} if count else {}
    return ExitEvidence(layer, frames=count, **fields)


def spoken_tokens(labels: np.ndarray, blank: int) -> tuple[int, ...]:
    """Greedy CTC: the tokens of the frames' best labels (T,), repeats and blanks removed."""
    runs = labels[run_starts(labels)]
    return tuple(runs[runs != blank].tolist())


# This is paid at every exit of every utterance ("deciding" in tools/bench_encoder.py). On so few numbers a call costs more than
# its work: ufuncs' own reductions are several times cheaper than mean() and max().
_sum = np.add.reduce


def run_starts(labels: np.ndarray) -> np.ndarray:
    """The frames where each run of equal labels (T,) starts."""
    return np.concatenate((np.zeros(min(1, len(labels)), int), (labels[1:] != labels[:-1]).nonzero()[0] + 1))


def _entropy(frames: Frames, blank: int) -> float:
    mean = float(_sum(frames.entropy)) / (len(frames.labels) * frames.vocabulary)
    return 0.0 if mean < 0 else mean  # rounding may leave less than 0; NaN stays


def _confidence(frames: Frames, blank: int) -> float:
    return float(_sum(frames.confidence)) / len(frames.labels)


def _blank_share(frames: Frames, blank: int) -> float:
    return 1.0 - np.count_nonzero(frames.labels != blank) / len(frames.labels)


def _spoken_confidence(frames: Frames, blank: int) -> float:
    spoken = frames.labels != blank
    count = np.count_nonzero(spoken)
    return float(_sum(frames.confidence[spoken])) / count if count else math.nan


def _token_confidence(frames: Frames, blank: int) -> float:
    starts = run_starts(frames.labels)
    spoken = frames.labels[starts] != blank
    surest = np.maximum.reduceat(frames.confidence, starts)[spoken]
    return float(np.minimum.reduce(surest)) if len(surest) else math.nan


def _cluster_entropy(frames: Frames, blank: int) -> float:
    if frames.cluster_entropy is None:
        return math.nan
    mean = float(_sum(frames.cluster_entropy)) / len(frames.labels)
    return 0.0 if mean < 0 else mean


_FIELDS: dict[str, Callable[[Frames, int], Any]] = {
    "tokens": lambda frames, blank: spoken_tokens(frames.labels, blank),
    "entropy": _entropy,
    "confidence": _confidence,
    "blank_share": _blank_share,
    "score": lambda frames, blank: float(_sum(frames.log_confidence)),
    "spoken_confidence": _spoken_confidence,
    "token_confidence": _token_confidence,
    "cluster_entropy": _cluster_entropy,
}
FIELDS = frozenset(_FIELDS)
"""All fields that are made of frames."""
