"""n-gram language models by KenLM, in C++: where it is installed, for it holds large ones in a fraction of the memory."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from espnet_ee.errors import UserError
from espnet_ee.policy.searching import is_kenlm_binary
from espnet_ee.search.arpa import END, LN10, NgramScorer, names_of_tokens, read_words
from espnet_ee.search.scorer import Scorer


class KenlmScorer(Scorer):
    """The same numbers as :class:`espnet_ee.search.arpa.NgramScorer`, up to float32's digits.

    Args:
        path: ARPA file, or KenLM's binary of one, whose words are the model's tokens.
        tokens: the model's.
        blank: blank id.
        weight: of the logarithms.

    Raises:
        UserError: it is missing, neither of them, damaged, or most of the model's tokens are none of its words.
    """

    def __init__(self, path: str | Path, tokens: Sequence[str], blank: int, weight: float) -> None:
        if not is_kenlm_binary(path):  # what is wrong with an ARPA file is told better than by KenLM
            self._names = names_of_tokens(path, read_words(path), tokens, blank)
        import kenlm

        try:
            with _silent():
                self._model = kenlm.Model(str(path))
        except OSError as error:
            reason = " ".join(str(error).rpartition(" threw ")[2].split())
            raise UserError(f"{path}: KenLM cannot read it ({reason}); make it again") from None
        if is_kenlm_binary(path):
            self._names = names_of_tokens(path, self._model, tokens, blank)
        self._new_state, self._score = kenlm.State, self._model.BaseScore
        self._weight = weight * LN10

    def start(self) -> Any:
        state = self._new_state()
        self._model.BeginSentenceWrite(state)
        return state

    def step(self, state: Any, token: int) -> tuple[Any, float]:
        following = self._new_state()
        return following, self._weight * self._score(state, self._names[token], following)

    def end(self, state: Any) -> float:
        return self._weight * self._score(state, END, self._new_state())

    def most(self, state: Any) -> float:
        return 0.0 if self._weight >= 0 else math.inf  # of weighted logarithms of probabilities


def open_ngrams(path: str | Path, tokens: Sequence[str], blank: int, weight: float) -> Scorer:
    """A language model, by KenLM if it is installed; see :class:`KenlmScorer`."""
    if find_spec("kenlm"):
        return KenlmScorer(path, tokens, blank, weight)
    if is_kenlm_binary(path):
        raise UserError(f"{path}: is KenLM's binary, and KenLM is not installed; pip install -e '.[lm]', or name the ARPA file")
    return NgramScorer(path, tokens, blank, weight)


@contextmanager
def _silent() -> Iterator[None]:
    """Without the bar that KenLM draws on the process's stderr."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
