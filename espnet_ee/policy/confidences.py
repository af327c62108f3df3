"""Word confidences that mean what they say: of words with 0.8, eight of ten are right. Made on a development set, kept as knots."""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from operator import itemgetter
from typing import Any

from espnet_ee.errors import UserError
from espnet_ee.values import is_number, is_whole

Knots = tuple[tuple[float, float], ...]
"""Confidences, rising, and for each how often words of it are right, which never falls."""
MOST_KNOTS = 100
_SAID, _RIGHT = "said", "right"


@dataclass(frozen=True)
class ConfidenceMap:
    """What a model's own word confidences are worth, exit by exit.

    Attributes:
        knots: by exit layer; straight lines between them, the nearest one's beyond. Those of an exit without any stay as they are.

    >>> ConfidenceMap({2: ((0.5, 0.25), (1.0, 0.75))})(2, 0.75)
    0.5
    """

    knots: Mapping[int, Knots] = field(default_factory=dict)

    def __call__(self, layer: int, confidence: float) -> float:
        """How often words of this confidence, 0..1, are right at this exit."""
        knots = self.knots.get(layer)
        if not knots:
            return confidence
        above = bisect.bisect_right(knots, confidence, key=itemgetter(0))
        if above in (0, len(knots)):
            return knots[min(above, len(knots) - 1)][1]
        (left, low), (right, high) = knots[above - 1 : above + 1]
        return low + (high - low) * (confidence - left) / (right - left)

    @classmethod
    def from_mapping(cls, mapping: Any) -> ConfidenceMap:
        """Reads the table that stands under ``confidences``: ``LAYER: {said: [...], right: [...]}``.

        Raises:
            UserError: it is none.
        """
        if not isinstance(mapping, Mapping):
            raise UserError("confidences: not a table of exit layers; calibrate again")
        return cls({_layer(key): _knots(key, value) for key, value in mapping.items()})

    def to_mapping(self) -> dict[int, dict[str, list[float]]]:
        """What :meth:`from_mapping` reads back."""
        return {
            layer: {key: [knot[place] for knot in knots] for place, key in enumerate((_SAID, _RIGHT))}
            for layer, knots in self.knots.items()
        }


def _layer(key: Any) -> int:
    if not is_whole(key):
        raise UserError(f"confidences: {key!r} is no exit layer; calibrate again")
    return key


def _knots(layer: int, table: Any) -> Knots:
    said, right = (table.get(key) if isinstance(table, Mapping) else None for key in (_SAID, _RIGHT))
    if not (
        isinstance(said, list)
        and isinstance(right, list)
        and 1 <= len(said) == len(right) <= MOST_KNOTS
        and all(is_number(share, 0, 1) for share in (*said, *right))
        and all(a < b for a, b in pairwise(said))
        and all(a <= b for a, b in pairwise(right))
    ):
        shape = f"two lists of up to {MOST_KNOTS} numbers in 0..1, {_SAID} rising and {_RIGHT} not falling"
        raise UserError(f"confidences: exit {layer} needs {shape}; calibrate again")
    return tuple(zip(map(float, said), map(float, right), strict=True))
