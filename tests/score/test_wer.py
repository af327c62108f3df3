"""Error counts against examples counted by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ee.errors import UserError
from espnet_ee.score.wer import ErrorCounts, add_counts, count_errors


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
    got = count_errors({"u": reference}, {"u": hypothesis}, "word")["u"]
    assert got == ErrorCounts(1, len(reference.split()), hits, subs, dels, ins, int(subs + dels + ins > 0))


def test_characters_count_the_space_between_words() -> None:
    counts = count_errors({"u": "ab cd", "v": ""}, {"u": "abcd", "v": "x y"}, "character")
    assert counts["u"] == ErrorCounts(1, 5, 4, 0, 1, 0, 1)
    assert counts["v"] == ErrorCounts(1, 0, 0, 0, 0, 3, 1)


def test_a_set_is_the_sum_of_its_utterances() -> None:
    counts = count_errors({"u": "a b c d", "v": "e", "w": "f g"}, {"u": "a x c", "v": "e", "w": "f g h"}, "word")
    total = add_counts(counts.values())
    assert total == ErrorCounts(3, 7, 5, 1, 1, 1, 2)
    assert total.errors == 3
    assert total.rate == pytest.approx(100 * 3 / 7)
    assert total.sentence_rate == pytest.approx(200 / 3)


def test_nothing_to_say_and_nothing_said_is_no_error() -> None:
    assert ErrorCounts(1).rate == 0.0
    assert ErrorCounts(1, insertions=1).rate == math.inf
    assert add_counts([]) == ErrorCounts()


def test_a_missing_hypothesis_is_named_and_never_dropped() -> None:
    with pytest.raises(UserError, match=r"no hypothesis for v \(2 of 3 utterances\)"):
        count_errors({"u": "a", "v": "b", "w": "c"}, {"u": "a"}, "word")


def test_a_hypothesis_without_reference_is_named() -> None:
    with pytest.raises(UserError, match=r"hypothesis for x .* which the reference lacks"):
        count_errors({"u": "a"}, {"u": "a", "x": "b"}, "word")


sentences = st.lists(st.sampled_from("abc"), max_size=6).map(" ".join)


@settings(deadline=None, max_examples=60)
@given(sentences, sentences)
def test_counts_add_up(reference: str, hypothesis: str) -> None:
    for unit, length in (("word", lambda text: len(text.split())), ("character", len)):
        got = count_errors({"u": reference}, {"u": hypothesis}, unit)["u"]
        assert got.hits + got.substitutions + got.deletions == got.tokens == length(reference)
        assert got.hits + got.substitutions + got.insertions == length(hypothesis)
        assert (got.errors == 0) == (reference == hypothesis) == (got.wrong_sentences == 0)
