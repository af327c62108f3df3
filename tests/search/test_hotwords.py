"""Hotwords: what a text gets in the end is its words' boosts, however it was spelled; and nothing else changes."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ee.errors import UserError
from espnet_ee.policy.searching import SearchConfig
from espnet_ee.search.beam import BeamSearch
from espnet_ee.search.hotwords import HotwordScorer
from espnet_ee.text import tokens_to_text
from tests.search.test_beam import random_table, totals

CHARACTERS = ("<blank>", "<unk>", "A", "<space>", "B", "N", "<sos/eos>")
PIECES = ("<blank>", "<unk>", "▁A", "NN", "A", "▁", "▁B", "N", "AN", "B", "<sos/eos>")
LETTERS = ("<blank>", "A", "B", "N")  # nothing between words
WORDS = st.dictionaries(
    st.sampled_from(["A", "AN", "ANN", "B AN", "AN AN", "NB", "B"]), st.floats(0.5, 20), min_size=1, max_size=4
)


def said(hotwords: dict[str, float], text: str, apart: bool) -> float:
    """The boosts of a text, counted place by place."""
    edge = " " if apart else ""
    padded = f"{edge}{text}{edge}"
    return sum(
        boost * sum(padded.startswith(f"{edge}{word}{edge}", place) for place in range(len(padded)))
        for word, boost in hotwords.items()
    )


def added(scorer: HotwordScorer, tokens: list[int]) -> list[float]:
    """What each token adds, and the end."""
    state, steps = scorer.start(), []
    for token in tokens:
        state, more = scorer.step(state, token)
        steps.append(more)
    return [*steps, scorer.end(state)]


@settings(max_examples=300, deadline=None)
@given(WORDS, st.sampled_from([CHARACTERS, PIECES, LETTERS]), st.lists(st.integers(0, 9), max_size=14))
def test_a_text_gets_the_boosts_of_the_words_it_says_and_no_more(
    hotwords: dict[str, float], vocabulary: tuple[str, ...], places: list[int]
) -> None:
    if vocabulary == LETTERS:
        hotwords = {word.replace(" ", ""): boost for word, boost in hotwords.items()}
    tokens = [1 + place % (len(vocabulary) - 1) for place in places]
    # What stands for nothing in a text is none of its letters.
    tokens = [token for token in tokens if vocabulary[token] not in ("<unk>", "<sos/eos>")]
    text = tokens_to_text([vocabulary[token] for token in tokens])
    scorer = HotwordScorer(hotwords, vocabulary, 0)
    steps = added(scorer, tokens)
    assert sum(steps) == pytest.approx(said(hotwords, text, vocabulary != LETTERS), abs=1e-9)
    state = scorer.start()
    for token in tokens:
        following, more = scorer.step(state, token)
        assert more <= scorer.most(state)
        state = following


def test_a_beginning_has_its_share_and_gives_it_back() -> None:
    scorer = HotwordScorer({"ANN": 6.0}, CHARACTERS, 0)
    a, space, b, n = (CHARACTERS.index(token) for token in ("A", "<space>", "B", "N"))
    assert added(scorer, [a, n, n]) == pytest.approx([2, 2, 2, 0])
    assert added(scorer, [a, n, b]) == pytest.approx([2, 2, -4, 0])
    assert added(scorer, [a, n]) == pytest.approx([2, 2, -4])
    assert added(scorer, [a, n, n, a]) == pytest.approx([2, 2, 2, -6, 0])  # another word
    assert added(scorer, [a, n, n, space, space, a]) == pytest.approx([2, 2, 2, 0, 0, 2, -2])
    assert added(scorer, [b, a, n, n]) == pytest.approx([0, 0, 0, 0, 0])  # the end of another word


@pytest.mark.parametrize(
    ("word", "vocabulary", "message"),
    [
        ("ANNA C", CHARACTERS, "the hotword 'ANNA C' cannot be spelled.*no token holds 'C'"),
        ("anna", PIECES, "no token holds 'a'"),
    ],
)
def test_what_the_tokens_cannot_spell_is_one_line(word: str, vocabulary: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        BeamSearch(SearchConfig("beam").with_hotwords([word]), vocabulary, 0)
    assert "\n" not in str(caught.value)


class TestInABeam:
    def test_scores_are_exhaustive_sums_and_the_boosts(self) -> None:
        vocabulary = ("<blank>", "A", "<space>", "N")
        hotwords = {"AN": 3.0, "A": 1.5, "N A": 2.0}
        for seed in range(5):
            log_probs = random_table(5, 4, seed)
            search = BeamSearch(SearchConfig("beam", 3000).with_hotwords(hotwords), vocabulary, 0)
            found = dict(search.nbest(log_probs))
            assert len(found) > 50
            for tokens, score in totals(log_probs).items():
                text = tokens_to_text([vocabulary[token] for token in tokens])
                if tokens in found:
                    assert found[tokens] == pytest.approx(score + said(hotwords, text, True), abs=1e-4)

    def test_a_boost_changes_only_texts_that_say_the_word(self) -> None:
        plain = SearchConfig("beam", 3000)
        changed = 0
        for seed, boost in itertools.product(range(6), (0.5, 3.0, 8.0)):
            log_probs = random_table(6, 4, seed, sharpness=2.0)
            before = BeamSearch(plain, LETTERS, 0).nbest(log_probs)
            after = BeamSearch(plain.with_hotwords({"AB": boost}), LETTERS, 0).nbest(log_probs)
            known = dict(before)
            for tokens, score in after:
                if "AB" not in "".join(LETTERS[token] for token in tokens):
                    assert score == pytest.approx(known[tokens], abs=1e-4)
            assert after[0][0] == before[0][0] or "AB" in "".join(LETTERS[token] for token in after[0][0])
            changed += after[0][0] != before[0][0]
        assert changed

    def test_a_word_that_the_beam_would_lose_is_found(self) -> None:
        generator = random.Random(0)
        vocabulary = ("<blank>", *"ABCDEFGH")
        word = "DEF"
        found = {False: 0, True: 0}
        for seed in range(30):
            rows = np.full((9, 9), -6.0, np.float32)
            for place, letter in enumerate(word):
                rows[3 * place, vocabulary.index(letter)] = -1.4
                rows[3 * place, vocabulary.index(generator.choice("ABC"))] = -0.5
                rows[3 * place + 1 : 3 * place + 3, 0] = -0.05
            rows += random_table(9, 9, seed, 0.1)
            for boosted in found:
                config = SearchConfig("beam", 4).with_hotwords({word: 6.0}) if boosted else SearchConfig("beam", 4)
                text = BeamSearch(config, vocabulary, 0).nbest(rows)[0][0]
                found[boosted] += "".join(vocabulary[token] for token in text) == word
        assert found == {False: 0, True: 30}

    def test_with_a_language_model_both_count(self, tmp_path) -> None:
        from tests.search.test_beam import ARPA, VOCABULARY, lm_score

        (tmp_path / "lm.arpa").write_text(ARPA)
        config = SearchConfig("beam", 3000, lm=str(tmp_path / "lm.arpa"), lm_weight=0.6).with_hotwords({"AB": 2.5})
        log_probs = random_table(5, 4, 3)
        found = dict(BeamSearch(config, VOCABULARY, 0).nbest(log_probs))
        for tokens, score in totals(log_probs).items():
            text = tokens_to_text([VOCABULARY[token] for token in tokens])
            if tokens in found:
                expected = score + 0.6 * lm_score(tokens) + said({"AB": 2.5}, text, True)
                assert found[tokens] == pytest.approx(expected, abs=1e-4)
        plain = replace(config, hotwords=())
        assert BeamSearch(plain, VOCABULARY, 0).nbest(log_probs)
