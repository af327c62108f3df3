"""From CTC paths to tokens to text; plain Python, used by training, decoding and scoring."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

_NOT_SPOKEN = ("<blank>", "<sos/eos>")


def collapse(path: Sequence[int], blank: int = 0) -> list[int]:
    """Removes repeats, then blanks, from a CTC path.

    >>> collapse([0, 3, 3, 0, 3, 5])
    [3, 3, 5]
    """
    return [token for token, _ in groupby(path) if token != blank]


def tokens_to_text(tokens: Sequence[str]) -> str:
    """Joins ESPnet tokens (characters with ``<space>``, or sentencepiece pieces with ``▁``) to text.

    >>> tokens_to_text(["A", "<space>", "B", "C"])
    'A BC'
    >>> tokens_to_text(["▁HEL", "LO", "▁YOU"])
    'HELLO YOU'
    """
    joined = "".join(token for token in tokens if token not in _NOT_SPOKEN)
    return " ".join(joined.replace("<space>", " ").replace("▁", " ").split())
