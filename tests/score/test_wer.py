"""Error counts against examples counted by hand."""

from __future__ import annotations

import io
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ee.errors import UserError
from espnet_ee.score.wer import ErrorCounts, add_counts, check_same_utterances, count_edits, invisible_characters, normal_form


@pytest.mark.parametrize(
    ("reference", "hypothesis", "hits", "subs", "dels", "ins"),
    [
        ("a b c", "a b c", 3, 0, 0, 0),
        ("a b c", "a x c", 2, 1, 0, 0),
        ("a b c", "a c", 2, 0, 1, 0),
        ("a b c", "a b d c", 3, 0, 0, 1),
        ("a b c", "", 0, 0, 3, 0),
        ("a  b\tc ", " a b  c", 3, 0, 0, 0),  # words are what whitespace separates, however much
        ("", "", 0, 0, 0, 0),
        ("", "a b", 0, 0, 0, 2),
        ("  ", "a", 0, 0, 0, 1),
    ],
)
def test_word_errors(reference: str, hypothesis: str, hits: int, subs: int, dels: int, ins: int) -> None:
    assert count_edits([(reference, hypothesis)], "word").tolist() == [[hits, subs, dels, ins]]


def test_characters_count_the_space_between_words() -> None:
    edits = count_edits([("ab cd", "abcd"), ("", "x y"), ("ab", "  ab  ")], "character")
    assert edits.tolist() == [[4, 0, 1, 0], [0, 0, 0, 3], [2, 0, 0, 0]]


def test_a_set_is_the_sum_of_its_utterances() -> None:
    edits = count_edits([("a b c d", "a x c"), ("e", "e"), ("f g", "f g h")], "word")
    total = add_counts(edits)
    assert total == ErrorCounts(3, 7, 5, 1, 1, 1, 2)
    assert total.errors == 3
    assert total.rate == pytest.approx(100 * 3 / 7)
    assert total.sentence_rate == pytest.approx(200 / 3)


def test_nothing_to_say_and_nothing_said_is_no_error() -> None:
    assert ErrorCounts(1).rate == 0.0
    assert ErrorCounts(1, insertions=1).rate == math.inf
    assert add_counts(count_edits([], "word")) == ErrorCounts()


def test_an_utterance_without_its_partner_is_named_and_never_dropped() -> None:
    with pytest.raises(UserError, match=r"v \(2 of 3 utterances\)"):
        check_same_utterances("uvw", "u", "a set")
    with pytest.raises(UserError, match="a set: .* x "):
        check_same_utterances("u", "ux", "a set")
    check_same_utterances("uv", "vu", "a set")


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("cafe\u0301", "caf\u00e9"),  # composed as a keyboard writes it
        ("of\ufb01ce \uff21\u00b2", "office A2"),
        ("a\u00a0b\u3000c", "a b c"),
        ("\ufeffa\u200bb\u200c", "a b"),  # sentencepiece reads these as blanks
        ("so\u00adft\u2060 \u061cx\u200d\x01", "soft x"),
        ("plain  text ", "plain text"),
    ],
)
def test_both_sides_have_one_normal_form(text: str, form: str) -> None:
    assert normal_form(text) == form == normal_form(form)
    assert not count_edits([(text, form), (form, text)], "character")[:, 1:].any()


def test_the_normal_form_is_what_a_bpe_model_says() -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    written = io.BytesIO()
    words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrs"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_writer=written, vocab_size=60, model_type="bpe", hard_vocab_limit=False
    )
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    for text in (
        "cafe\u0301",
        "of\ufb01ce \uff21\u00b2",
        "a\u200bb",
        "\ufeffa\u200cb \u200ec",
        "\u212bngstr\u00f6m \u00bd",
        "\u2126",
    ):
        assert normal_form(text) == model.normalize(text).replace("\u2581", " ").strip()


def test_invisible_characters_are_counted() -> None:
    assert invisible_characters(["a\u200bb", "plain text", "\u00e9t\u00e9\u3000x", "\u00ad\x01"]) == 3


sentences = st.lists(st.sampled_from("abc"), max_size=6).map(" ".join)


@settings(deadline=None, max_examples=60)
@given(sentences, sentences)
def test_counts_add_up(reference: str, hypothesis: str) -> None:
    for unit, length in (("word", lambda text: len(text.split())), ("character", len)):
        [[hits, subs, dels, ins]] = count_edits([(reference, hypothesis)], unit).tolist()
        assert hits + subs + dels == length(reference)
        assert hits + subs + ins == length(hypothesis)
        assert (subs + dels + ins == 0) == (reference == hypothesis)
