"""Sampling rates as ESPnet's configurations write them."""

from __future__ import annotations

import math


def parse_rate(value: object) -> int:
    """Reads a sampling rate in Hz: a number, or as ``frontend_conf: fs`` has it by default, ``16k``.

    >>> parse_rate("22.05k"), parse_rate(8000)
    (22050, 8000)

    Raises:
        ValueError: it is something else.
    """
    text = str(value).lower()
    rate = float(text[:-1]) * 1000 if text.endswith("k") else float(text)
    if not 0 < rate < math.inf:
        raise ValueError(value)
    return round(rate)
