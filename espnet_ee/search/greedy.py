"""The best token of every frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from espnet_ee.policy.frames import Frames, spoken_tokens


@dataclass(frozen=True)
class Hypothesis:
    """What a search found.

    Attributes:
        tokens: token numbers, blanks and repeats removed.
        score: log-probability, <= 0; of a greedy search that of its path.
    """

    tokens: tuple[int, ...]
    score: float


def greedy(frames: Frames, blank: int) -> Hypothesis:
    """The greedy hypothesis of one exit's frames.

    Args:
        frames: of one utterance.
        blank: blank id.
    """
    return Hypothesis(spoken_tokens(frames.labels, blank), float(np.add.reduce(frames.log_confidence)))
