"""How sure a number is: bootstrap over utterances, alone and paired."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from espnet_ee.score.outcome import Outcome

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """The middle 95 % of what resampled utterances give."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"[{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Difference(Interval):
    """A difference of two error rates on the same utterances: its interval, and the difference itself.

    Attributes:
        points: the first less the second, in points of per cent; below 0 the first is better.
    """

    points: float

    def __str__(self) -> str:
        return f"{self.points:+.2f} {super().__str__()}"


def draws(utterances: int, seed: int = 0) -> np.ndarray:
    """How often each utterance is drawn in each resample (R, N); the same for the same number of utterances."""
    random = np.random.default_rng(seed)
    # As floats: products of them are many times faster, and as exact.
    return random.multinomial(utterances, np.full(utterances, 1 / utterances), size=RESAMPLES).astype(float)


def _quantiles(values: np.ndarray) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return np.nan, np.nan
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _wer(drawn: np.ndarray, outcome: Outcome) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * (drawn @ outcome.errors) / (drawn @ outcome.lengths)


def wer_interval(drawn: np.ndarray, outcome: Outcome) -> Interval:
    """Interval of the word error rate in per cent."""
    return Interval(*_quantiles(_wer(drawn, outcome)))


def difference(drawn: np.ndarray, first: Outcome, second: Outcome) -> Difference:
    """Difference of the error rates, first less second, with its interval on the same resamples."""
    return Difference(*_quantiles(_wer(drawn, first) - _wer(drawn, second)), first.wer - second.wer)
