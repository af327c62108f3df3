"""From CTC paths to tokens to text; plain Python, used by training, decoding and scoring."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

_NOT_SPOKEN = ("<blank>", "<sos/eos>")
_UNKNOWN_PIECE = " \u2047 "  # as sentencepiece says it
READABLE = ("char", "bpe", "word", "phn")
"""The types of tokens that become text here; those of other packages' tokenisers do not."""


def collapse(path: Sequence[int], blank: int = 0) -> list[int]:
    """Removes repeats, then blanks, from a CTC path.

    >>> collapse([0, 3, 3, 0, 3, 5])
    [3, 3, 5]
    """
    return [token for token, _ in groupby(path) if token != blank]


def tokens_to_text(tokens: Sequence[str], token_type: str = "char") -> str:
    """Joins tokens to text as ESPnet's tokeniser of that type does, but that blanks are single.

    Args:
        tokens: characters with ``<space>``, sentencepiece's pieces with ``▁``, or words.
        token_type: ``char`` (and ``phn``), ``bpe`` or ``word``, as in ESPnet's recipes.

    >>> tokens_to_text(["A", "<space>", "B", "C"])
    'A BC'
    >>> tokens_to_text(["▁HEL", "LO", "<unk>", "▁YOU"], "bpe")
    'HELLO ⁇ YOU'
    >>> tokens_to_text(["HELLO", "YOU"], "word")
    'HELLO YOU'
    """
    return " ".join("".join(spelling(token, token_type) for token in tokens).split())


def spelling(token: str, token_type: str = "char") -> str:
    """What a token adds to a text: nothing, letters, blanks.

    >>> spelling("▁HEL"), spelling("<space>"), spelling("<blank>"), spelling("HELLO", "word")
    (' HEL', ' ', '', ' HELLO ')
    """
    if token in _NOT_SPOKEN:
        return ""
    if token_type == "word":
        return f" {token} "
    if token_type == "bpe" and token == "<unk>":
        return _UNKNOWN_PIECE
    return token.replace("<space>", " ").replace("▁", " ")


def token_type_of(tokens: Sequence[str]) -> str:
    """The type of a vocabulary of which nobody says it: pieces of sentencepiece, or characters."""
    return "bpe" if any(token.startswith("▁") for token in tokens) else "char"
