"""How sure a number is: bootstrap over utterances, alone and paired."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from espnet_ee.score.grid import Outcome

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """The middle 95 % of what resampled utterances give."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.2f} to {self.high:.2f}"


@dataclass(frozen=True)
class Difference(Interval):
    """A difference of two error rates on the same utterances: its interval, and the difference itself.

    Attributes:
        points: one minus other, in points of per cent; below 0 is better.
    """

    points: float

    def __str__(self) -> str:
        return f"{self.points:+.2f} [{super().__str__()}]"


def draws(utterances: int, seed: int = 0) -> np.ndarray:
    """How often each utterance is drawn in each resample (R, N); the same for the same number of utterances."""
    random = np.random.default_rng(seed)
    return random.multinomial(utterances, np.full(utterances, 1 / utterances), size=RESAMPLES)


def _interval(values: np.ndarray) -> Interval:
    values = values[np.isfinite(values)]
    return (
        Interval(*(float(value) for value in np.quantile(values, (0.025, 0.975)))) if len(values) else Interval(np.nan, np.nan)
    )


def _wer(drawn: np.ndarray, found: Outcome) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return 100 * (drawn @ found.errors) / (drawn @ found.words)


def wer_interval(drawn: np.ndarray, found: Outcome) -> Interval:
    """Interval of the word error rate in per cent."""
    return _interval(_wer(drawn, found))


def macs_interval(drawn: np.ndarray, found: Outcome) -> Interval:
    """Interval of the compute per second of audio."""
    return _interval((drawn @ found.macs) / (drawn @ found.seconds))


def depth_interval(drawn: np.ndarray, found: Outcome) -> Interval:
    """Interval of the mean exit layer."""
    return _interval((drawn @ found.layers) / len(found.layers))


def paired_interval(drawn: np.ndarray, one: Outcome, other: Outcome) -> Interval:
    """Interval of the difference of the word error rates, one minus other, on the same resamples."""
    return _interval(_wer(drawn, one) - _wer(drawn, other))


def difference(drawn: np.ndarray, one: Outcome, other: Outcome) -> Difference:
    """Difference of the error rates, one minus other, with its paired interval."""
    interval = paired_interval(drawn, one, other)
    return Difference(interval.low, interval.high, one.wer - other.wer)
