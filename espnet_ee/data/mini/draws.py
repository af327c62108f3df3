"""Random numbers that are the same on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Value = TypeVar("Value")


class Random:
    """Draws that depend on nothing but the names given.

    Only PCG64's plain doubles are used: numpy promises those bits, but not the values of its distributions.
    """

    def __init__(self, *names: object) -> None:
        digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
        self._generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * float(self._generator.random())

    def choice(self, values: Sequence[Value]) -> Value:
        """One of the values."""
        return values[int(self.uniform(0, len(values)))]

    def noise(self, count: int) -> np.ndarray:
        """White noise (count,) of unit power."""
        return (self._generator.random(count) - 0.5) * 12.0**0.5
