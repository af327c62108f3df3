"""Words of any tokens: those of the text, in order, without overlap, inside the audio."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_ee.policy.frames import Frames
from espnet_ee.search.greedy import TokenSpan, greedy
from espnet_ee.search.words import Word, shifted, words_of
from espnet_ee.text import collapse, tokens_to_text

CHARACTERS = ["<blank>", "A", "B", "<space>", "<sos/eos>"]
PIECES = ["<blank>", "▁A", "B", "▁", "C▁D", "▁E▁", "<unk>"]
WORDS = ["<blank>", "A", "BB", "<unk>", "<sos/eos>"]


def frames_of(path: list[int], seed: int = 0) -> Frames:
    log = -np.random.default_rng(seed).exponential(size=len(path))
    return Frames(np.array(path, int), log, np.zeros(len(path)), 9)


VOCABULARIES = {"char": CHARACTERS, "bpe": PIECES, "word": WORDS}


@given(st.lists(st.integers(0, 6), max_size=25), st.sampled_from(sorted(VOCABULARIES)), st.floats(0, 3), st.integers(0, 99))
def test_words_of_any_path(path: list[int], token_type: str, seconds: float, seed: int) -> None:
    vocabulary = VOCABULARIES[token_type]
    path = [label % len(vocabulary) for label in path]
    frames = frames_of(path, seed)
    hypothesis = greedy(frames, 0)
    assert list(hypothesis.tokens) == collapse(path)
    tokens = [vocabulary[token] for token in hypothesis.tokens]
    words = words_of(tokens, hypothesis.spans, 0.08, seconds, token_type)
    assert " ".join(word.text for word in words) == tokens_to_text(tokens, token_type)
    times = [time for word in words for time in (word.start, word.end)]
    assert times == sorted(times) and all(0 <= time <= seconds for time in times)
    assert all(0 < word.confidence <= 1 and word.text for word in words)


@given(st.lists(st.integers(0, 3), max_size=25))
def test_spans_are_the_runs_of_the_path(path: list[int]) -> None:
    frames = frames_of(path)
    said = [-1] * len(path)
    hypothesis = greedy(frames, 0)
    for token, span in zip(hypothesis.tokens, hypothesis.spans, strict=True):
        said[span.start : span.end] = [token] * (span.end - span.start)
        assert span.log_probability == max(frames.log_confidence[span.start : span.end])
    assert said == [label or -1 for label in path]


def test_confidence_is_a_mean_over_tokens_and_blanks_between_words_do_not_count() -> None:
    spans = [
        TokenSpan(2, 4, math.log(0.9)),
        TokenSpan(5, 6, math.log(0.4)),
        TokenSpan(6, 7, math.log(0.1)),
        TokenSpan(8, 9, 0.0),
    ]
    first, second = words_of(["A", "B", "<space>", "A"], spans, 0.04)
    assert first.confidence == pytest.approx(math.sqrt(0.9 * 0.4)) and second.confidence == 1.0
    assert (first.start, first.end, second.start, second.end) == pytest.approx((0.08, 0.24, 0.32, 0.36))
    assert first.later(2.0) == Word("AB", 2.08, 2.24, first.confidence)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=9),
    st.tuples(st.floats(-0.9, 0.9), st.floats(-0.9, 0.9)),
    st.floats(0, 1),
)
def test_words_that_are_moved_stay_in_order_and_inside(
    spoken: list[tuple[float, float]], shift: tuple[float, float], rest: float
) -> None:
    words, clock = [], 0.0
    for pause, lasts in spoken:
        words.append(Word("A", clock + pause, clock + pause + lasts, 0.5))
        clock = words[-1].end
    moved = shifted(words, shift, clock + rest)
    times = [time for word in moved for time in (word.start, word.end)]
    assert times == sorted(times) and all(0 <= time <= clock + rest for time in times) and len(moved) == len(words)
    if len(words) == 1 and 0 <= words[0].start + shift[0] <= clock + rest and words[0].end + shift[1] <= clock + rest:
        assert moved[0].start == words[0].start + shift[0]
        assert moved[0].end == max(words[0].end + shift[1], moved[0].start)
