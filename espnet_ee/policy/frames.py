"""What an exit's head says of every frame, and the evidence made of it. NumPy alone: every engine reduces to this."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain

import numpy as np

from espnet_ee.policy.evidence import ExitEvidence

# Evidence is paid at every exit of every utterance ("deciding" in tools/bench_runtime.py), after a segment has driven all else out of
# the caches: what a call costs then is not its work on so few numbers but the first touch of its code and of fresh memory. In
# microseconds (AN4, 250 frames): the sum of an array 16 through a memoryview, 26 through a list, 49 by np.add.reduce; tokens 46 by the
# loop below, 102 by five of NumPy's functions; a frozen dataclass of 13 fields 15, one that is not 3. So little is called here, and what a
# policy does not look at is not made.


@dataclass(slots=True)
class Frames:
    """One exit's unpadded frames of one utterance.

    Attributes:
        labels: best token of each frame (T,).
        log_confidence: its log-probability (T,).
        entropy: of each frame's distribution over the tokens, natural log (T,).
        vocabulary: number of tokens V.
        log_probs: log-probabilities (T, V); only where somebody asked for them.
        cluster_entropy: entropy of the cluster head's distribution in each frame (T,), natural log; only where somebody asked for it,
            and of exits that have one.
    """

    labels: np.ndarray
    log_confidence: np.ndarray
    entropy: np.ndarray
    vocabulary: int
    log_probs: np.ndarray | None = None
    cluster_entropy: np.ndarray | None = None


class FrameEvidence(ExitEvidence):
    """Evidence of one or more frames, each field made when somebody looks at it first.

    Mean frame entropy: xi = -1/(T V) sum_t sum_v p log p (arXiv 2309.09546).

    Args:
        layer: the exit's block, 1-based.
        frames: of one utterance.
        blank: blank id.
    """

    _of: Frames
    _blank: int

    def __init__(self, layer: int, frames: Frames, blank: int) -> None:
        self.__dict__.update(layer=layer, frames=len(frames.labels), _of=frames, _blank=blank)

    @cached_property
    def entropy(self) -> float:
        return _mean(sum(self._of.entropy.data), self.frames * self._of.vocabulary)

    @cached_property
    def _spoken(self) -> tuple[tuple[int, ...], float]:
        return spoken_tokens(self._of.labels, self._of.log_confidence, self._blank)

    @property
    def tokens(self) -> tuple[int, ...]:
        return self._spoken[0]

    @property
    def token_confidence(self) -> float:
        return math.exp(self._spoken[1])

    @property
    def confidence(self) -> float:
        return sum(map(math.exp, self._of.log_confidence.data)) / self.frames

    @property
    def blank_share(self) -> float:
        return 1.0 - np.count_nonzero(self._of.labels != self._blank) / self.frames

    @property
    def score(self) -> float:
        return float(np.add.reduce(self._of.log_confidence))  # as a greedy text has it

    @property
    def spoken_confidence(self) -> float:
        pairs = zip(self._of.labels.data, self._of.log_confidence.data, strict=True)
        sure = [math.exp(log) for label, log in pairs if label != self._blank]
        return sum(sure) / len(sure) if sure else math.nan

    @property
    def cluster_entropy(self) -> float:
        entropy = self._of.cluster_entropy
        return math.nan if entropy is None else _mean(sum(entropy.data), self.frames)


FIELDS = frozenset(vars(FrameEvidence)) & {field.name for field in fields(ExitEvidence)}
"""All fields that are made of frames."""


def _mean(total: float, count: int) -> float:
    return 0.0 if total < 0 else total / count  # rounding may leave less than 0; NaN stays


def evidence_of(layer: int, frames: Frames, blank: int, reads: Collection[str]) -> ExitEvidence:
    """The fields of the evidence that somebody reads; the others stay unknown, and of an utterance without frames all do.

    Args:
        layer: the exit's block, 1-based.
        frames: of one utterance.
        blank: blank id.
        reads: fields of :class:`ExitEvidence`; of those that are not made of frames (``nbest_scores``) there is none here.
    """
    return read_of(FrameEvidence(layer, frames, blank), reads) if len(frames.labels) else ExitEvidence(layer)


def read_of(evidence: ExitEvidence, reads: Collection[str]) -> ExitEvidence:
    """Evidence that is made, and keeps no frames: the fields that somebody reads."""
    if not isinstance(evidence, FrameEvidence):
        return evidence
    return ExitEvidence(
        evidence.layer, frames=evidence.frames, **{name: getattr(evidence, name) for name in FIELDS.intersection(reads)}
    )


def spoken_tokens(labels: np.ndarray, sure: np.ndarray, blank: int) -> tuple[tuple[int, ...], float]:
    """Greedy CTC: the frames' best labels (T,), repeats and blanks removed, and how sure the least sure token is.

    Args:
        labels: best token of each frame.
        sure: its probability, or that one's logarithm (T,); a token has that of the surest of its frames.
        blank: blank id.

    Returns:
        The tokens, and the least of their probabilities, or its logarithm; NaN without a token, or if one of its frames has NaN.
    """
    tokens = []
    least, best, last = math.inf, math.inf, blank
    # A blank at the end, so that the last token ends like the others.
    for label, here in chain(zip(labels.data, sure.data, strict=True), ((blank, math.nan),)):
        if label != last:
            if last != blank and not least <= best and least == least:  # of NaN neither holds, so it stays
                least = best
            best, last = here, label
            if label != blank:
                tokens.append(label)
        elif not here <= best and best == best:
            best = here
    return tuple(tokens), least if tokens else math.nan


def run_starts(labels: np.ndarray) -> np.ndarray:
    """The frames where each run of equal labels (T,) starts."""
    new = np.empty(len(labels), bool)
    new[:1] = True
    np.not_equal(labels[1:], labels[:-1], new[1:])
    return new.nonzero()[0]
