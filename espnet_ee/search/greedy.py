"""The best token of every frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from espnet_ee.policy.frames import Frames, run_starts


@dataclass(frozen=True)
class TokenSpan:
    """Where a token lies.

    Attributes:
        start: its first frame.
        end: the frame after its last one.
        log_probability: of the token in the surest of its frames.
    """

    start: int
    end: int
    log_probability: float


@dataclass(frozen=True)
class Hypothesis:
    """What a search found.

    Attributes:
        tokens: token numbers, blanks and repeats removed.
        score: log-probability, <= 0; of a greedy search that of its path.
        spans: of each token, one after the other.
    """

    tokens: tuple[int, ...]
    score: float
    spans: tuple[TokenSpan, ...]


def greedy(frames: Frames, blank: int) -> Hypothesis:
    """The greedy hypothesis of one exit's frames."""
    tokens, spans = spans_of_path(frames.labels, frames.log_confidence, blank)
    return Hypothesis(tokens, float(np.add.reduce(frames.log_confidence)), spans)


def spans_of_path(
    labels: np.ndarray, log_probabilities: np.ndarray, blank: int
) -> tuple[tuple[int, ...], tuple[TokenSpan, ...]]:
    """Tokens of a path (T,) of tokens and blanks, and where each lies; ``log_probabilities`` are those of the path (T,)."""
    starts = run_starts(labels)
    tokens = labels[starts]
    spoken = (tokens != blank).nonzero()[0]
    surest = np.maximum.reduceat(log_probabilities, starts) if len(starts) else log_probabilities
    columns = (starts[spoken], np.append(starts[1:], len(labels))[spoken], surest[spoken])
    spans = map(TokenSpan, *(column.tolist() for column in columns))
    return tuple(tokens[spoken].tolist()), tuple(spans)
