"""A lexicon: no word outside comes out of a beam, and of those inside the search finds what exhaustive search finds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ee.errors import UserError
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.packaged import read_configs, write_configs
from espnet_ee.policy.searching import SearchConfig
from espnet_ee.search.beam import BeamSearch
from espnet_ee.search.lexicon import LexiconScorer, read_lexicon
from espnet_ee.text import tokens_to_text
from tests.search.test_beam import ARPA, VOCABULARY, frames_of, lm_score, random_table, totals

CHARACTERS = ("<blank>", "A", "<space>", "B")
PIECES = ("<blank>", "▁A", "B", "▁B", "A")
WORDS = st.sets(st.sampled_from(["A", "B", "AB", "BA", "AAB", "BBA"]), min_size=1)


def text_of(vocabulary: tuple[str, ...], tokens: tuple[int, ...]) -> str:
    return tokens_to_text([vocabulary[token] for token in tokens])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lexicon")


@settings(max_examples=60, deadline=None)
@given(words=WORDS, vocabulary=st.sampled_from([CHARACTERS, PIECES]), seed=st.integers(0, 10**6), sharpness=st.floats(0.3, 4))
def test_a_beam_that_prunes_nothing_finds_all_texts_of_these_words_and_no_others(
    folder: Path, words: set[str], vocabulary: tuple[str, ...], seed: int, sharpness: float
) -> None:
    (folder / "words.txt").write_text("".join(f"{word}\n" for word in words))
    log_probs = random_table(5, len(vocabulary), seed, sharpness)
    config = SearchConfig("beam", 5000, width=600.0, lexicon=str(folder / "words.txt"))
    found = dict(BeamSearch(config, vocabulary, 0).nbest(log_probs))
    inside = {tokens: score for tokens, score in totals(log_probs).items() if set(text_of(vocabulary, tokens).split()) <= words}
    assert found == pytest.approx(inside, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(words=WORDS, beam=st.integers(1, 6), frames=st.integers(0, 25), seed=st.integers(0, 10**6))
def test_however_narrow_the_beam_no_word_outside_comes_out(
    folder: Path, words: set[str], beam: int, frames: int, seed: int
) -> None:
    (folder / "words.txt").write_text("".join(f"{word}\n" for word in words))
    (folder / "lm.arpa").write_text(ARPA)
    log_probs = random_table(frames, 4, seed, 3.0)
    for more in ({}, {"lm": str(folder / "lm.arpa")}, {"hotwords": (("B A", 9.0), ("BB", 9.0))}, {"blank_skip": 0.9}):
        search = BeamSearch(SearchConfig("beam", beam, lexicon=str(folder / "words.txt"), **more), VOCABULARY, 0)
        for tokens, score in search.nbest(log_probs):
            assert set(text_of(VOCABULARY, tokens).split()) <= words and math.isfinite(score)
        assert set(text_of(VOCABULARY, search(frames_of(log_probs)).tokens).split()) <= words


def test_with_a_language_model_scores_are_those_of_exhaustive_search(folder: Path) -> None:
    (folder / "words.txt").write_text("AB\nA\n")
    (folder / "lm.arpa").write_text(ARPA)
    config = SearchConfig("beam", 5000, lm=str(folder / "lm.arpa"), lm_weight=0.5, lexicon=str(folder / "words.txt"))
    for seed in range(5):
        log_probs = random_table(5, 4, seed)
        inside = {
            tokens: score + 0.5 * lm_score(tokens)
            for tokens, score in totals(log_probs).items()
            if set(text_of(VOCABULARY, tokens).split()) <= {"AB", "A"}
        }
        found = BeamSearch(config, VOCABULARY, 0).nbest(log_probs)
        assert found[0][1] == pytest.approx(max(inside.values()), abs=1e-4)
        assert all(score == pytest.approx(inside[tokens], abs=1e-4) for tokens, score in found)


def test_a_word_is_dead_as_soon_as_no_other_begins_so(folder: Path) -> None:
    (folder / "words.txt").write_text("AB\nABBA\n")
    scorer = LexiconScorer(folder / "words.txt", CHARACTERS, 0)
    a, space, b = 1, 2, 3

    def added(*tokens: int) -> list[float]:
        state, steps = scorer.start(), []
        for token in tokens:
            state, more = scorer.step(state, token)
            steps.append(more)
        return [*steps, scorer.end(state)]

    never = -math.inf
    assert added() == [0] and added(space, space, a, b, space) == [0] * 6
    assert added(a, b, b) == [0, 0, 0, never] and added(a, b, b, a) == [0] * 5
    assert added(a, a)[1] == never and added(b)[0] == never and added(a, space)[1] == never


def test_both_formats_are_read_and_what_is_wrong_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "lexicon.txt"
    path.write_text("AB A B\nAB\n\nBA\t▁B A\n")
    assert list(read_lexicon(path, PIECES, 0)) == ["AB", "AB", "BA"]
    path.write_text("AB A B\n")
    assert list(read_lexicon(path, CHARACTERS, 0)) == ["AB"]
    for content, message in (
        ("AB\nHELLO HH AH\n", r"lexicon\.txt:2: 'HH' is none of the model's tokens"),
        ("AB B A\n", r"lexicon\.txt:1: its tokens spell 'BA', not 'AB'"),
        ("A\n\nCAB\n", r"lexicon\.txt:3: 'CAB' cannot be spelled with the model's tokens: no token holds 'C'"),
        ("\n \n", "has no words"),
        ("", "has no words"),
    ):
        path.write_text(content)
        with pytest.raises(UserError, match=message):
            LexiconScorer(path, CHARACTERS, 0)
    with pytest.raises(UserError, match="no such lexicon"):
        LexiconScorer(tmp_path / "none.txt", CHARACTERS, 0)
    path.write_text("AB\n")
    with pytest.raises(UserError, match="nothing parts words"):
        LexiconScorer(path, ("<blank>", "A", "B"), 0)


def test_it_is_found_from_its_configuration_and_travels_with_it(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("AB\n")
    (tmp_path / "decode.yaml").write_text("search: {kind: beam, lexicon: words.txt}\n")
    config = DecodingConfig.read(tmp_path / "decode.yaml")
    assert config.search.lexicon == str(tmp_path / "words.txt") and "words of words.txt alone" in str(config.search)
    assert DecodingConfig.from_mapping(config.to_mapping(), "x") == config
    (tmp_path / "package").mkdir()
    write_configs(tmp_path / "package", {"one": config, "two": config})
    packed = read_configs(tmp_path / "package", "one", tmp_path, (2, 4)).configs["two"]
    assert packed.search.lexicon == str(tmp_path / "package/lexicon.txt")
    assert np.isfinite(BeamSearch(packed.search, CHARACTERS, 0).scores(random_table(5, 4, 0))).all()
    (tmp_path / "package/decode_one.yaml").write_text("search: {kind: beam, lexicon: ../words.txt}\n")
    with pytest.raises(UserError, match="search: lexicon '../words.txt' is not a file beside it, refused"):
        read_configs(tmp_path / "package", None, tmp_path, (2, 4))
    for search, message in (
        ({"kind": "greedy", "lexicon": "a"}, "lexicon is of no use"),
        ({"kind": "beam", "lexicon": 3}, "lexicon is 3"),
    ):
        with pytest.raises(UserError, match=message):
            SearchConfig.from_mapping(search)
