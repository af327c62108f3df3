"""What stopping somewhere gave: errors, compute and time of every utterance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from espnet_ee.score.wer import ErrorCounts, add_counts


@dataclass(frozen=True)
class Outcome:
    """What stopping somewhere gave, utterance by utterance; of a mixture of two ways, their mean.

    Attributes:
        words: hits, substitutions, deletions and insertions of words (N, 4).
        characters: likewise of characters (N, 4).
        macs: multiply-accumulates (N,).
        layers: exit layer (N,).
        seconds: audio (N,).
        clock: measured seconds of computing (N,), None when not measured.
    """

    words: np.ndarray
    characters: np.ndarray
    macs: np.ndarray
    layers: np.ndarray
    seconds: np.ndarray
    clock: np.ndarray | None = None

    @cached_property
    def errors(self) -> np.ndarray:
        """Word errors (N,)."""
        return self.words[:, 1:].sum(axis=1)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Words of the references (N,)."""
        return self.words[:, :3].sum(axis=1).round()

    @property
    def wer(self) -> float:
        """Word error rate in per cent."""
        return 100 * float(self.errors.sum()) / max(1, int(self.lengths.sum()))

    @property
    def depth(self) -> float:
        """Mean exit layer."""
        return float(self.layers.mean())

    @property
    def macs_per_second(self) -> float:
        """Compute per second of audio."""
        return float(self.macs.sum() / self.seconds.sum())

    @property
    def rtf(self) -> float:
        """Measured seconds of computing per second of audio; NaN when not measured."""
        return math.nan if self.clock is None else float(self.clock.sum() / self.seconds.sum())

    def counts(self) -> tuple[ErrorCounts, ErrorCounts]:
        """Errors of words and of characters, added up; of what is no mixture."""
        return add_counts(self.words), add_counts(self.characters)

    def mixed(self, other: Outcome, share: float) -> Outcome:
        """The expectation when a share of the utterances, drawn by chance, goes the other way."""
        parts = ("words", "characters", "macs", "layers")
        means = {name: (1 - share) * getattr(self, name) + share * getattr(other, name) for name in parts}
        clock = None if self.clock is None or other.clock is None else (1 - share) * self.clock + share * other.clock
        return Outcome(**means, seconds=self.seconds, clock=clock)


def at_cost(outcomes: Sequence[Outcome], macs_per_second: float) -> Outcome:
    """A curve's outcome at this compute: the mixture of the two operating points (given in any order) around it, or the nearest end."""
    order = sorted(outcomes, key=lambda point: point.macs_per_second)
    costs = [point.macs_per_second for point in order]
    after = int(np.searchsorted(costs, macs_per_second))
    if after in (0, len(order)):
        return order[min(after, len(order) - 1)]
    low, high = costs[after - 1], costs[after]
    return order[after - 1].mixed(order[after], (macs_per_second - low) / (high - low))
