"""Token lists in ESPnet's order."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece

from espnet_ee.data.tokens import char_tokens, make_tokens
from espnet_ee.errors import UsageError, UserError

TEXT = "u1 THE CAT SAT\nu2 THE HAT\nu3\nu4 A CAT AT THE MAT\n"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_text(TEXT)
    return path


def test_characters_by_frequency_then_code_point() -> None:
    assert char_tokens(["BA A", "CA"]) == ["<blank>", "<unk>", "A", "<space>", "B", "C", "<sos/eos>"]


def test_char_list_is_written_one_a_line(text: Path, tmp_path: Path) -> None:
    tokens = make_tokens([text], "char", tmp_path / "out")
    assert (tmp_path / "out" / "tokens.txt").read_text() == "".join(f"{token}\n" for token in tokens)
    assert tokens[:5] == ["<blank>", "<unk>", "T", "<space>", "A"]


def test_several_texts_count_together(text: Path, tmp_path: Path) -> None:
    (tmp_path / "more").write_text("v1 ZZZZZZZZZZZZZZZZ\n")
    assert make_tokens([text, tmp_path / "more"], "char", tmp_path / "out")[2] == "Z"


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_bpe_list_is_the_models_with_espnets_ends(model_type: str, text: Path, tmp_path: Path) -> None:
    count = {"bpe": 16, "unigram": 12}[model_type]
    tokens = make_tokens([text], "bpe", tmp_path, count, model_type)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "bpe.model"))
    assert len(tokens) == count and (tokens[0], tokens[1], tokens[-1]) == ("<blank>", "<unk>", "<sos/eos>")
    assert tokens[2:-1] == [processor.id_to_piece(index) for index in range(3, count)]
    for sentence in ("THE CAT SAT", "A MAT"):
        pieces = processor.encode(sentence, out_type=str)
        assert set(pieces) <= set(tokens) and processor.decode(pieces) == sentence


def test_bpe_is_the_same_every_time(text: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_tokens([text], "bpe", tmp_path / name, nbpe=16)
    assert (tmp_path / "one" / "bpe.model").read_bytes() == (tmp_path / "two" / "bpe.model").read_bytes()


@pytest.mark.parametrize("bound", ["highest", "lowest"])
def test_bpe_says_how_many_are_possible(bound: str, text: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"\d+ is the {bound} possible") as caught:
        make_tokens([text], "bpe", tmp_path / "out", nbpe=5000 if bound == "highest" else 4)
    possible = int(str(caught.value).split("; ")[1].split()[0])
    assert len(make_tokens([text], "bpe", tmp_path / "out", nbpe=possible)) == possible


def test_text_is_needed(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("u1\n")
    with pytest.raises(UserError, match="no transcript"):
        make_tokens([tmp_path / "text"], "char", tmp_path / "out")


@pytest.mark.parametrize(("token_type", "nbpe"), [("char", 10), ("bpe", None)])
def test_nbpe_belongs_to_bpe(token_type: str, nbpe: int | None, text: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--nbpe"):
        make_tokens([text], token_type, tmp_path, nbpe)
