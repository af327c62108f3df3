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
    if not count:
        return ExitEvidence(layer)
    fields: dict[str, Any] = {}
    for name, of in _FIELDS.items():
        if name in reads:
            fields[name] = of(frames, blank)
    if "tokens" in reads or "token_confidence" in reads:
        tokens, token_confidence = spoken_tokens(frames.labels, frames.confidence, blank)
        if "tokens" in reads:
            fields["tokens"] = tokens
        if "token_confidence" in reads:
            fields["token_confidence"] = token_confidence
    return ExitEvidence(layer, frames=count, **fields)


# This is paid at every exit of every utterance ("deciding" in tools/bench_runtime.py), after a segment has driven all else out of the
# caches: what a kind of call costs then is not its work on so few numbers but the first touch of its code. So there are few kinds, of
# which ufuncs' own reductions are several times cheaper than mean() and max().
_sum = np.add.reduce


def spoken_tokens(labels: np.ndarray, confidence: np.ndarray, blank: int) -> tuple[tuple[int, ...], float]:
    """Greedy CTC: the frames' best labels (T,), repeats and blanks removed, and how sure the least sure token is.

    Args:
        labels: best token of each frame.
        confidence: its probability (T,); a token has that of the surest of its frames.
        blank: blank id.

    Returns:
        The tokens, and the least of their probabilities; NaN without a token.
    """
    starts = run_starts(labels)
    runs = labels.take(starts)
    spoken = (runs - blank if blank else runs).nonzero()[0]
    if not len(spoken):
        return (), math.nan
    surest = np.maximum.reduceat(confidence, starts).take(spoken)
    return tuple(runs.take(spoken).tolist()), float(np.minimum.reduce(surest))


def run_starts(labels: np.ndarray) -> np.ndarray:
    """The frames where each run of equal labels (T,) starts."""
    new = np.empty(len(labels), bool)
    new[:1] = True
    np.not_equal(labels[1:], labels[:-1], new[1:])
    return new.nonzero()[0]


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


def _cluster_entropy(frames: Frames, blank: int) -> float:
    if frames.cluster_entropy is None:
        return math.nan
    mean = float(_sum(frames.cluster_entropy)) / len(frames.labels)
    return 0.0 if mean < 0 else mean


_FIELDS: dict[str, Callable[[Frames, int], Any]] = {
    "entropy": _entropy,
    "confidence": _confidence,
    "blank_share": _blank_share,
    "score": lambda frames, blank: float(_sum(frames.log_confidence)),
    "spoken_confidence": _spoken_confidence,
    "cluster_entropy": _cluster_entropy,
}
FIELDS = frozenset(_FIELDS) | {"tokens", "token_confidence"}
"""All fields that are made of frames."""
