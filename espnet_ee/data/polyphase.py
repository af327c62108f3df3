"""Resampling by polyphase filtering, in NumPy alone: what prepares a corpus also runs on a device, with the same samples.

The filter is that of :func:`scipy.signal.resample_poly` (a sinc of ten zero crossings a side under a Kaiser window, beta 5).
Not SciPy's function, nor another library's: a device need not hold SciPy, and a model hears there what it hears elsewhere.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import numpy as np

_CROSSINGS, _BETA = 10, 5.0


def change_length(samples: np.ndarray, ratio: Fraction) -> np.ndarray:
    """Makes (T,) samples ``ratio`` (new rate to old) times as long: ceil(T * ratio) float64 samples, not clipped."""
    up, down = ratio.numerator, ratio.denominator
    filters = _filters(up, down)
    taps = filters.shape[1]
    count = -(-len(samples) * up // down)
    middle = _CROSSINGS * max(up, down)
    last = ((count - 1) * down + middle) // up
    padded = np.zeros(taps - 1 + max(len(samples), last + 1))
    padded[taps - 1 : taps - 1 + len(samples)] = samples
    windows = np.lib.stride_tricks.sliding_window_view(padded, taps)
    result = np.empty(count)
    # Of all outputs with one filter the windows lie `down` samples apart.
    for first in range(min(up, count)):
        sample, phase = divmod(first * down + middle, up)
        same = result[first::up]
        same[:] = windows[sample::down][: len(same)] @ filters[phase]
    return result


def reach(ratio: Fraction) -> int:
    """How many samples on each side an output of :func:`change_length` is made of, at most."""
    return _CROSSINGS * max(ratio.numerator, ratio.denominator) // ratio.numerator + 1


@lru_cache(maxsize=8)
def _filters(up: int, down: int) -> np.ndarray:
    """A filter for each of the places of an output between two inputs (up, taps), first tap on the oldest sample."""
    wider = max(up, down)
    places = np.arange(-_CROSSINGS * wider, _CROSSINGS * wider + 1)
    response = np.sinc(places / wider) * np.kaiser(len(places), _BETA)
    response *= up / response.sum()
    taps = -(-len(response) // up)
    return np.pad(response, (0, taps * up - len(response))).reshape(taps, up).T[:, ::-1].copy()
