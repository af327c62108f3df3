"""How sure a number is: bootstrap over utterances, alone and paired."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from espnet_ee.score.outcome import Outcome

RESAMPLES = 2000


class Difference(NamedTuple):
    """A difference of two error rates on the same utterances, in points of per cent, and its interval.

    Below 0 the first is better.
    """

    points: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.points:+.2f} {interval_text(self.low, self.high)}"


def interval_text(low: float, high: float) -> str:
    """An interval as the pages show it."""
    return f"[{low:.2f}, {high:.2f}]"


def draws(utterances: int, seed: int = 0) -> np.ndarray:
    """How often each utterance is drawn in each resample (R, N); the same for the same number of utterances."""
    random = np.random.default_rng(seed)
    # As floats: products of them are many times faster, and as exact.
    return random.multinomial(utterances, np.full(utterances, 1 / utterances), size=RESAMPLES).astype(float)


def _middle(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of what resampled utterances give."""
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, (0.025, 0.975)) if len(values) else (np.nan, np.nan)
    return float(low), float(high)


def _wer(drawn: np.ndarray, outcome: Outcome) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * (drawn @ outcome.errors) / (drawn @ outcome.lengths)


def wer_interval(drawn: np.ndarray, outcome: Outcome) -> tuple[float, float]:
    """Interval of the word error rate in per cent."""
    return _middle(_wer(drawn, outcome))


def difference(drawn: np.ndarray, first: Outcome, second: Outcome) -> Difference:
    """Difference of the error rates, first less second, with its interval on the same resamples."""
    return Difference(first.wer - second.wer, *_middle(_wer(drawn, first) - _wer(drawn, second)))
