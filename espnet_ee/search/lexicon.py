"""A lexicon: the words that a search may say, and no others."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import Path

from espnet_ee.errors import UserError
from espnet_ee.files import is_file, read_lines
from espnet_ee.search.align import Speller
from espnet_ee.search.scorer import Scorer
from espnet_ee.text import spelling


class LexiconScorer(Scorer):
    """Takes from a text that says another word all its probability, as soon as no word of the lexicon begins so.

    Letters are matched, so it does not matter which tokens spell a word. A state is what is spelled since the last blank.

    Args:
        path: see :func:`read_lexicon`.
        tokens: the vocabulary.
        blank: blank id.

    Raises:
        UserError: the file is missing or broken, or the model writes no blanks between words.
    """

    def __init__(self, path: str | Path, tokens: Sequence[str], blank: int) -> None:
        self._letters = ["" if place == blank else spelling(token) for place, token in enumerate(tokens)]
        if not any(" " in letters for letters in self._letters):
            raise UserError("search: lexicon: no token of the model writes a blank, so nothing parts words; leave it out")
        self._known = frozenset(read_lexicon(path, tokens, blank))
        self._sorted = sorted(self._known)

    def start(self) -> str:
        return ""

    def step(self, state: str, token: int) -> tuple[str, float]:
        """After a token, and what it adds: nothing, or minus infinity."""
        word = state
        for letter in self._letters[token]:
            if not letter.isspace():
                word += letter
            elif word in self._known:
                word = ""
            elif word:
                return word, -math.inf
        place = bisect_left(self._sorted, word)
        return word, 0.0 if self._sorted[place : place + 1] and self._sorted[place].startswith(word) else -math.inf

    def end(self, state: str) -> float:
        return 0.0 if not state or state in self._known else -math.inf

    def most(self, state: str) -> float:
        return 0.0


def read_lexicon(path: str | Path, tokens: Sequence[str], blank: int) -> Iterator[str]:
    """The words of a file of ``word`` or ``word token token ...`` lines (Kaldi's lexicon.txt), each of which the model can spell.

    Raises:
        UserError: it is missing, holds no word, or a line's tokens are none of the model's, or spell another word.
    """
    if not is_file(path):
        raise UserError(f"{path}: no such lexicon; check the path (search: lexicon)")
    speller, known = Speller(tokens, blank), {token.replace("▁", "<space>") for token in tokens}
    lines = read_lines(path)
    if not any(map(str.split, lines)):
        raise UserError(f"{path}: has no words; write one a line")
    for number, line in enumerate(lines, 1):
        word, *spelled = line.split() or [""]
        for token in spelled:
            if token.replace("▁", "<space>") not in known:
                raise UserError(
                    f"{path}:{number}: {token!r} is none of the model's tokens; mend the line, or leave the word alone on it"
                )
        if spelled and (said := "".join(map(spelling, spelled)).strip()) != word:
            raise UserError(
                f"{path}:{number}: its tokens spell {said!r}, not {word!r}; mend the line, or leave the word alone on it"
            )
        try:
            speller(word)
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from None
        if word:
            yield word
