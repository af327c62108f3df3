"""n-gram language models of tokens in ARPA's format: reading and checking a file, and its probabilities in plain Python."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

from espnet_ee.errors import UserError
from espnet_ee.files import is_file, refuse_mark
from espnet_ee.policy.searching import is_kenlm_binary
from espnet_ee.search.scorer import Scorer

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
LN10 = math.log(10)
_HEAD, _TAIL = "\\data\\", "\\end\\"
_NOT_SPOKEN = ("<blank>", "<blk>", "<eps>", UNKNOWN, "<sos/eos>", BEGIN, END)
_SPACES = ("<space>", "▁")  # one and the same where they stand alone: exported models have the second
_UNKNOWN_LOG10 = -100.0  # KenLM's, of a model without <unk>
_BLANKS = re.compile("[ \t\r\n]+")  # no others: a token may be one of Unicode's blanks

Entry = tuple[tuple[str, ...], float, float]
"""An n-gram: its words, the decimal logarithm of its probability, and that of its weight as a history (0: none)."""

State = tuple[str, ...]
"""The last words, as many as the model looks back at."""


def read_arpa(path: str | Path) -> Iterator[Entry]:
    """The n-grams of a file, those of order 1 first.

    Raises:
        UserError: it is missing, no ARPA file, or damaged; names the line.
    """
    path = Path(path)
    if not is_file(path):
        raise UserError(f"{path}: no such language model; check the path (search: lm)")
    if is_kenlm_binary(path):
        raise UserError(f"{path}: is KenLM's binary; give the ARPA file that it was made of")
    try:
        with open(path, encoding="utf-8") as stream:
            lines = ((number, line) for number, line in enumerate(stream, 1) if not line.isspace())
            head = next(lines, (0, ""))[1].strip()
            refuse_mark(path, head)  # KenLM does not read it either
            if head != _HEAD:
                raise UserError(f"{path}: does not begin with {_HEAD}, so it is no ARPA file; give one")
            yield from _entries(path, lines)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8, so it is no ARPA file; give one (unpacked, if it was packed)") from None


def _entries(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[Entry]:
    declared: dict[int, int] = {}
    order, left, number = 0, 0, 1
    for number, line in lines:
        if line.startswith("\\"):
            if left:
                raise _damaged(path, number, f"{left} n-grams of order {order} are missing")
            if (order == len(declared) > 0) and line.strip() == _TAIL:
                return
            order += 1
            if order not in declared or line.strip() != f"\\{order}-grams:":
                raise _damaged(path, number, f"{line.strip()[:40]!r} is not expected here")
            left = declared[order]
        elif order == 0:
            count = re.fullmatch(r"ngram\s+(\d{1,9})\s*=\s*(\d{1,15})", line.strip(), re.ASCII)
            if count is None or int(count[1]) != len(declared) + 1:
                raise _damaged(path, number, f"not 'ngram {len(declared) + 1}=COUNT'")
            declared[len(declared) + 1] = int(count[2])
        else:
            left -= 1
            entry = _entry(line, order)
            if entry is None or left < 0:
                raise _damaged(
                    path, number, f"no n-gram of order {order}" if left >= 0 else f"more n-grams of order {order} than declared"
                )
            yield entry
    raise _damaged(path, number, f"{_TAIL} is missing")


def _entry(line: str, order: int) -> Entry | None:
    columns = line.split() if line.isascii() else [column for column in _BLANKS.split(line) if column]
    if not order + 1 <= len(columns) <= order + 2:
        return None
    try:
        probability, weight = float(columns[0]), float(columns[order + 1]) if len(columns) > order + 1 else 0.0
    except ValueError:
        return None
    if not -math.inf < probability <= 0 or not math.isfinite(weight):
        return None
    return tuple(columns[1 : order + 1]), probability, weight


def _damaged(path: Path, number: int, what: str) -> UserError:
    return UserError(f"{path}:{number}: {what}, so the ARPA file is damaged; make it again")


def names_of_tokens(path: str | Path, words: Container[str], tokens: Sequence[str], blank: int) -> list[str]:
    """What a language model calls a vocabulary's tokens; those that it lacks are its <unk>.

    Args:
        path: of the model, for messages.
        words: the model's.
        tokens: the vocabulary.
        blank: blank id.

    Raises:
        UserError: the model has no sentence ends, or most of the tokens are none of its words.
    """
    for mark in (BEGIN, END):
        if mark not in words:
            raise UserError(f"{path}: lacks {mark}; make it of sentences, one a line, without marks of their ends")
    names = [_name_in(words, token) for token in tokens]
    spoken = [name for place, name in enumerate(names) if place != blank and name not in _NOT_SPOKEN]
    missing = [name for name in spoken if name not in words]
    if 2 * len(missing) > len(spoken):
        some = ", ".join(missing[:5])
        raise UserError(
            f"{path}: of the model's {len(spoken)} tokens it lacks {len(missing)} ({some} ...), so it is of other units; make one of "
            "the model's tokens: espnet-ee data lm"
        )
    return [name if name in words else UNKNOWN for name in names]


def _name_in(words: Container[str], token: str) -> str:
    if token in words or token not in _SPACES:
        return token
    return next((name for name in _SPACES if name in words), token)


def read_words(path: str | Path) -> set[str]:
    """The words of a file, all of which is looked through. Raises UserError as :func:`read_arpa`."""
    return {words[0] for words, _, _ in read_arpa(path) if len(words) == 1}


class NgramScorer(Scorer):
    """The weighted natural logarithms of an n-gram model's probabilities, token by token, as KenLM gives them.

    Args:
        path: ARPA file whose words are the model's tokens.
        tokens: the model's.
        blank: blank id.
        weight: of the logarithms.

    Raises:
        UserError: as :func:`read_arpa` and :func:`names_of_tokens`.
    """

    def __init__(self, path: str | Path, tokens: Sequence[str], blank: int, weight: float) -> None:
        self._ngrams: dict[State, tuple[float, float]] = {}
        same: dict[str, str] = {}
        for ngram, probability, history in read_arpa(path):
            self._ngrams[tuple(same.setdefault(word, word) for word in ngram)] = (probability, history)
        self._order = max(map(len, self._ngrams), default=1)
        words = {ngram[0] for ngram in self._ngrams if len(ngram) == 1}
        self._names = names_of_tokens(path, words, tokens, blank)
        self._weight = weight * LN10

    def start(self) -> State:
        return self._cut((BEGIN,))

    def step(self, state: State, token: int) -> tuple[State, float]:
        name = self._names[token]
        return self._cut((*state, name)), self._weight * self._log10(state, name)

    def end(self, state: State) -> float:
        return self._weight * self._log10(state, END)

    def most(self, state: State) -> float:
        return 0.0 if self._weight >= 0 else math.inf  # of weighted logarithms of probabilities

    def _cut(self, words: State) -> State:
        return words[max(0, len(words) - self._order + 1) :]

    def _log10(self, history: State, word: str) -> float:
        weights = 0.0
        while True:
            found = self._ngrams.get((*history, word))
            if found is not None:
                return found[0] + weights
            if not history:
                return _UNKNOWN_LOG10 + weights
            weights += self._ngrams.get(history, (0.0, 0.0))[1]
            history = history[1:]
