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
    return " ".join("".join(map(spelling, tokens)).split())


def spelling(token: str) -> str:
    """What a token adds to a text: nothing, letters, blanks.

    >>> spelling("▁HEL"), spelling("<space>"), spelling("<blank>")
    (' HEL', ' ', '')
    """
    return "" if token in _NOT_SPOKEN else token.replace("<space>", " ").replace("▁", " ")
