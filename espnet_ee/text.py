"""From CTC paths to tokens to text; plain Python, used by training, decoding and scoring."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import groupby

_NOT_SPOKEN = ("<blank>", "<sos/eos>")
_UNKNOWN_PIECE = " \u2047 "  # as sentencepiece says it
_JOINERS = "\u200c\u200d"  # Persian and the scripts of India spell with them
_MARKS = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2"  # of the same kind (Cf), but seen
READ_AS_BLANK = "\u200b\u200c\u200e\u200f\ufeff"
"""Signs that nobody sees and sentencepiece takes for blanks, and so do scores."""
INVISIBLE = ("Cc", "Cf")
"""Unicode's categories of signs that nobody sees."""
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


def invisible_signs(text: str) -> str:
    """The signs of a text that nobody sees and no writing needs: no-width spaces, soft hyphens, directions, control signs.

    >>> invisible_signs("a\u200bb\u00ad")
    '\u200b\xad'
    """
    if text.isascii() and text.isprintable():
        return ""
    kinds = ((sign, unicodedata.category(sign)) for sign in text if not sign.isspace())
    return "".join(sign for sign, kind in kinds if kind in INVISIBLE and sign not in _JOINERS + _MARKS)


def without_invisible(text: str) -> str:
    """The text without its :func:`invisible_signs`; what sentencepiece takes for a blank becomes one.

    >>> without_invisible("a\u200bb co\u00adop")
    'a b coop'
    """
    signs = invisible_signs(text)
    for sign in signs:
        text = text.replace(sign, " " if sign in READ_AS_BLANK else "")
    return " ".join(text.split()) if signs else text


def token_type_of(tokens: Sequence[str]) -> str:
    """The type of a vocabulary of which nobody says it: pieces of sentencepiece, or characters."""
    return "bpe" if any(token.startswith("▁") for token in tokens) else "char"
