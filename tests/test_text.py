"""Tokens become the text that ESPnet's own tokenisers make of them."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ee.data.tokens import bpe_tokens
from espnet_ee.text import token_type_of, tokens_to_text

VOCABULARIES = {
    "char": ["A", "B", "<space>", "<unk>", "'"],
    "word": ["HELLO", "YOU", "<unk>", "A"],
}


@functools.cache
def pieces() -> tuple[Path, list[str]]:
    model, tokens = bpe_tokens(["HELLO YOU", "YELLOW HELL", "A LOUD YELL"], 24, "bpe")
    path = Path(tempfile.mkdtemp()) / "bpe.model"
    path.write_bytes(model)
    return path, [token for token in tokens if token not in ("<blank>", "<sos/eos>")]


@pytest.mark.parametrize("token_type", ["char", "word", "bpe"])
@given(numbers=st.lists(st.integers(0, 30), max_size=12))
@settings(deadline=None)
def test_the_text_is_that_of_espnets_tokeniser_but_for_the_number_of_blanks(token_type: str, numbers: list[int]) -> None:
    from espnet2.text.build_tokenizer import build_tokenizer

    path, vocabulary = pieces() if token_type == "bpe" else (None, VOCABULARIES[token_type])
    tokens = [vocabulary[number % len(vocabulary)] for number in numbers]
    stock = build_tokenizer(token_type, bpemodel=path and str(path)).tokens2text(tokens)
    assert tokens_to_text(tokens, token_type) == " ".join(stock.split())


def test_an_untold_type_is_seen_from_the_pieces() -> None:
    assert token_type_of(["<blank>", "▁A", "B"]) == "bpe"
    assert token_type_of(["<blank>", "A", "<space>"]) == "char"
