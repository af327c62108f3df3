"""n-gram models of tokens: what is made of texts, and what a search takes of it."""

from __future__ import annotations

import itertools
import math
from importlib.util import find_spec
from pathlib import Path

import pytest

from espnet_ee.cli.main import main
from espnet_ee.data.tokens import make_tokens
from espnet_ee.errors import UserError
from espnet_ee.search.arpa import LN10, NgramScorer, read_arpa
from espnet_ee.search.ngram_training import train_ngram

TEXT = "u1 ONE TWO TWO\nu2 TWO ONE\nu3\nu4 TWO TWO THREE\n"
needs_kaldingram = pytest.mark.skipif(find_spec("kaldingram") is None, reason="kaldingram is not installed (extra lm)")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")
    return tmp_path / "text"


def probability(scorer: NgramScorer, tokens: tuple[int, ...]) -> float:
    state, total = scorer.start(), 0.0
    for token in tokens:
        state, added = scorer.step(state, token)
        total += added
    return math.exp(total + scorer.end(state))


@needs_kaldingram
@pytest.mark.process
class TestTraining:
    def test_characters_of_the_texts_become_likely(self, text: Path, tmp_path: Path) -> None:
        tokens = make_tokens([text], "char", tmp_path / "tokens")
        main(
            [
                *f"data lm --text {text} --tokens {tmp_path / 'tokens'} --token_type char --tool kaldingram --out".split(),
                f"{tmp_path}/lm.arpa",
            ]
        )
        scorer = NgramScorer(tmp_path / "lm.arpa", tokens, 0, 1.0)

        def spell(words: str) -> tuple[int, ...]:
            return tuple(tokens.index("<space>" if sign == " " else sign) for sign in words)

        said, mixed = (probability(scorer, spell(words)) for words in ("ONE TWO", "WTO ENO"))
        assert said > 100 * mixed > 0
        orders = [len(words) for words, _, _ in read_arpa(tmp_path / "lm.arpa")]
        assert max(orders) == 5 and orders == sorted(orders)

    def test_probabilities_add_up_to_one(self, text: Path, tmp_path: Path) -> None:
        tokens = make_tokens([text], "char", tmp_path / "tokens")
        train_ngram([text], tmp_path / "tokens", "char", tmp_path / "lm.arpa", 3, "kaldingram")
        scorer = NgramScorer(tmp_path / "lm.arpa", tokens, 0, 1.0)
        spoken = [place for place, token in enumerate(tokens) if not token.startswith("<") or token == "<space>"]
        for history in itertools.chain([()], itertools.product(spoken[:4], repeat=2)):
            state = scorer.start()
            for token in history:
                state, _ = scorer.step(state, token)
            following = [scorer.step(state, token)[1] for token in spoken] + [scorer.end(state)]
            assert sum(map(math.exp, following)) == pytest.approx(1, abs=1e-4)

    def test_pieces_and_the_same_bytes_twice(self, text: Path, tmp_path: Path) -> None:
        pytest.importorskip("sentencepiece")
        tokens = make_tokens([text], "bpe", tmp_path / "tokens", 14, "bpe")
        made = [
            train_ngram([text, text], tmp_path / "tokens", "bpe", tmp_path / name, None, "kaldingram") for name in ("a", "b")
        ]
        assert made[0].startswith("3-gram model of 6 sentences by kaldingram")
        assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
        words = {words[0] for words, _, _ in read_arpa(tmp_path / "a") if len(words) == 1}
        assert {"<s>", "</s>", "<unk>", "▁TWO"} <= words and words <= {*tokens, "<s>", "</s>"}

    def test_a_token_that_the_text_lacks_is_rare_and_not_impossible(self, text: Path, tmp_path: Path) -> None:
        (tmp_path / "tokens").mkdir()
        (tmp_path / "tokens" / "tokens.txt").write_text(
            "".join(f"{token}\n" for token in ["<blank>", "<unk>", *"ONETWHRQ", "<space>"])
        )
        train_ngram([text], tmp_path / "tokens", "char", tmp_path / "lm.arpa", 2, "kaldingram")
        entries = {words: probability for words, probability, _ in read_arpa(tmp_path / "lm.arpa")}
        rarest = min(value for words, value in entries.items() if len(words) == 1 and words[0] not in ("<s>", "<unk>"))
        assert entries[("<unk>",)] == pytest.approx(rarest - 1, abs=1e-5)
        scorer = NgramScorer(tmp_path / "lm.arpa", ["<blank>", "Q", *"ONETWHR"], 0, 1.0)
        assert -30 * LN10 < scorer.step(scorer.start(), 1)[1] < 0


@pytest.mark.parametrize(
    ("content", "order", "message"),
    [
        (TEXT, 6, "--order 6: give 2 to 5"),
        ("u1\nu2\n", 3, "no sentence in it"),
        (None, 3, "no such file"),
        ("u1 \udcff\n", 3, "not UTF-8"),
    ],
)
def test_what_makes_no_model_is_one_line(content: str | None, order: int, message: str, tmp_path: Path) -> None:
    (tmp_path / "tokens").mkdir()
    (tmp_path / "tokens" / "tokens.txt").write_text("<blank>\nA\n")
    if content is not None:
        (tmp_path / "text").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=message):
        train_ngram([tmp_path / "text"], tmp_path / "tokens", "char", tmp_path / "lm.arpa", order, "kaldingram")
    assert not (tmp_path / "lm.arpa").exists()


def test_without_a_tool_it_is_said_what_to_install(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_tokens([text], "char", tmp_path / "tokens")
    monkeypatch.setattr("espnet_ee.search.ngram_training.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError, match=r"neither lmplz .* pip install -e '\.\[lm\]'"):
        train_ngram([text], tmp_path / "tokens", "char", tmp_path / "lm.arpa")
