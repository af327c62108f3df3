"""Forced alignment against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_ee.errors import UserError
from espnet_ee.search.align import Speller, align, chain
from espnet_ee.text import collapse, tokens_to_text


@given(st.integers(0, 5), st.lists(st.integers(1, 2), max_size=4), st.integers(0, 10**6))
def test_the_path_is_the_best_of_those_that_read_as_the_text(frames: int, text: list[int], seed: int) -> None:
    log_probs = np.random.default_rng(seed).normal(size=(frames, 3))
    paths = [path for path in itertools.product(range(3), repeat=frames) if collapse(path) == text]
    found = align(log_probs, chain(text, 0))
    if not paths or not frames:
        assert found is None
        return
    assert found is not None and collapse(found.tolist()) == text
    rows = np.arange(frames)
    assert np.isclose(log_probs[rows, found].sum(), max(log_probs[rows, list(path)].sum() for path in paths))


CHARACTERS = ("<blank>", "A", "B", "<space>", "<unk>")
PIECES = ("<blank>", "▁A", "B", "▁", "A", "AB", "▁AB", "<sos/eos>")


@given(
    st.sampled_from([CHARACTERS, PIECES]),
    st.integers(1, 4),
    st.sampled_from(["", "A", "AB", "A B", "BA", "AA", "AB AB"]),
    st.integers(0, 10**6),
)
def test_all_spellings_are_tried(vocabulary: tuple[str, ...], frames: int, text: str, seed: int) -> None:
    log_probs = np.random.default_rng(seed).normal(size=(frames, len(vocabulary)))
    usable = [place for place, token in enumerate(vocabulary) if token not in ("<unk>", "<sos/eos>")]

    def reads_as_the_text(path: tuple[int, ...]) -> bool:
        said = "".join(vocabulary[token] for token in collapse(path)).replace("<space>", "▁")
        plain = "▁".join(text.split())
        return said in ((plain,) if not plain else (plain, "▁" + plain))

    paths = [path for path in itertools.product(usable, repeat=frames) if reads_as_the_text(path)]
    found = align(log_probs, Speller(vocabulary, 0)(text))
    if not paths:
        assert found is None
        return
    assert found is not None
    assert tokens_to_text([vocabulary[token] for token in collapse(found.tolist())]) == text
    rows = np.arange(frames)
    assert np.isclose(log_probs[rows, found].sum(), max(log_probs[rows, list(path)].sum() for path in paths))


def test_what_the_tokens_cannot_spell_is_named() -> None:
    with pytest.raises(UserError, match="no token holds 'Ö'"):
        Speller(CHARACTERS, 0)("A BÖ")
    with pytest.raises(UserError, match="not in this order"):
        Speller(("<blank>", "AB"), 0)("A")


def test_a_script_without_blanks() -> None:
    path = align(np.zeros((4, 3)), Speller(("<blank>", "你", "好"), 0)("你 好"))
    assert path is not None and collapse(path.tolist()) == [1, 2]
