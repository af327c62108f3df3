"""N-best scores: the message without flashlight-text, and the search against brute force where it is there."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from espnet_ee.errors import UserError
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.frames import Frames
from espnet_ee.policy.posterior import PosteriorPolicy
from espnet_ee.policy.searching import SearchConfig
from espnet_ee.search.beam import BeamSearch, NBestSearch, build_search
from espnet_ee.text import collapse
from tests import tiny


def test_without_flashlight_the_policy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("flashlight", "flashlight.lib", "flashlight.lib.text"):
        monkeypatch.setitem(sys.modules, name, None)
    model = tiny.model()
    with pytest.raises(UserError, match=r"policy posterior.*pip install -e '\.\[nbest\]'"):
        tiny.asr(model, PosteriorPolicy(0.5))
    tiny.asr(model, EntropyPolicy(0.5))  # nobody else asks for it


class TestWithFlashlight:
    @pytest.fixture(autouse=True)
    def needs_flashlight(self) -> None:
        pytest.importorskip("flashlight.lib.text", reason="flashlight-text is built for Python 3.12 and older")

    def test_scores_are_those_of_all_alignments(self) -> None:
        log_probs = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).log_softmax(-1).numpy()
        totals: dict[tuple[int, ...], float] = {}
        for path in itertools.product(range(4), repeat=5):
            text = tuple(collapse(path))
            totals[text] = np.logaddexp(totals.get(text, -np.inf), sum(log_probs[t, v] for t, v in enumerate(path)))
        # A beam that can hold every prefix prunes nothing.
        found = NBestSearch(600, 4).scores(log_probs)
        assert found == pytest.approx(sorted(totals.values(), reverse=True)[: len(found)], rel=1e-4)
        assert len(found) > 10

    def test_nothing_to_search(self) -> None:
        search = NBestSearch(4, 5)
        assert search.scores(np.zeros((0, 5), np.float32)) == ()
        assert search.scores(np.full((3, 5), np.nan, np.float32)) == ()
        one = np.full((3, 5), np.log(0.2), np.float32)
        assert search.scores(one) != ()
        one[1, 2] = np.nan
        assert search.scores(one) == ()

    def test_ten_tokens_are_tried_in_a_frame(self) -> None:
        frame = np.log(np.arange(12, 0, -1, dtype=np.float32) / 78)[None]
        assert len(NBestSearch(100, 12).scores(frame)) == 10

    def test_what_falls_far_behind_is_dropped(self) -> None:
        search = NBestSearch(100, 3)
        assert search.scores(np.array([[0, -49.5, -90]], np.float32)) == (0.0, -49.5)
        assert search.scores(np.array([[0, -50.5, -90]], np.float32)) == (0.0,)

    @pytest.mark.parametrize("nbest", [1, 2, 5])
    def test_it_gives_no_more_than_was_asked_for(self, nbest: int) -> None:
        log_probs = torch.randn(9, 6, generator=torch.Generator().manual_seed(0)).log_softmax(-1).numpy()
        scores = NBestSearch(nbest, 6).scores(log_probs)
        assert len(scores) == nbest and list(scores) == sorted(scores, reverse=True)

    def test_any_token_can_be_the_blank(self) -> None:
        log_probs = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).log_softmax(-1).numpy()
        moved = np.roll(log_probs, -1, axis=1)  # token 0 becomes token 3
        assert NBestSearch(600, 4, blank=3).scores(moved) == pytest.approx(NBestSearch(600, 4).scores(log_probs), rel=1e-5)

    def test_the_online_policy_reads_it_and_does_not_see_the_batch(self) -> None:
        random = np.random.default_rng(0)
        speech = [random.standard_normal(length).astype(np.float32) * 0.1 for length in (9000, 16000, 5000)]
        model = tiny.model(seed=2)
        whole = tiny.every_exit(model, speech, nbest=4)
        values = sorted(PosteriorPolicy(0.0, nbest=4).level([row.evidence]) for one in whole for row in one.rows[:-1])
        assert all(np.isfinite(values))
        for threshold in (values[0] - 1e-4, (values[2] + values[3]) / 2, values[-1] + 1e-4):
            policy = PosteriorPolicy(threshold, nbest=4)
            batched = tiny.asr(model, policy).recognise(speech)
            expected = [next((r for r in one.rows[:-1] if policy.should_stop([r.evidence])), one.rows[-1]) for one in whole]
            assert [r.exit_layer for r in batched] == [row.evidence.layer for row in expected]
            assert [r.text for r in batched] == [row.hypothesis for row in expected]


ARPA = """\\data\\
ngram 1=6
ngram 2=4

\\1-grams:
-2.0\t<unk>
-99\t<s>\t-0.3
-0.8\t</s>
-0.5\tA\t-0.2
-0.7\tB\t-0.1
-0.9\t<space>\t-0.4

\\2-grams:
-0.2\t<s> A
-0.3\tA B
-0.4\tB </s>
-0.1\t<space> A

\\end\\
"""
VOCABULARY = ("<blank>", "A", "B", "▁")
BIGRAMS = {("<s>", "A"): -0.2, ("A", "B"): -0.3, ("B", "</s>"): -0.4, ("<space>", "A"): -0.1}
UNIGRAMS = {"<s>": (-99, -0.3), "</s>": (-0.8, 0.0), "A": (-0.5, -0.2), "B": (-0.7, -0.1), "<space>": (-0.9, -0.4)}


def lm_score(text: tuple[int, ...]) -> float:
    """Natural logarithm of a text's probability under ARPA: a bigram, or the unigram with its history's weight."""
    words = ["<s>", *(VOCABULARY[token].replace("▁", "<space>") for token in text), "</s>"]
    pairs = itertools.pairwise(words)
    return np.log(10) * sum(BIGRAMS.get(pair, UNIGRAMS[pair[0]][1] + UNIGRAMS[pair[1]][0]) for pair in pairs)


def frames_of(log_probs: np.ndarray) -> Frames:
    best = log_probs.max(-1)
    return Frames(log_probs.argmax(-1), np.exp(best), best, best, log_probs.shape[1], log_probs)


def random_table(frames: int, vocabulary: int, seed: int, sharpness: float = 1.0) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, sharpness, (frames, vocabulary))
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def totals(log_probs: np.ndarray) -> dict[tuple[int, ...], float]:
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        text = tuple(collapse(path))
        found[text] = np.logaddexp(found.get(text, -np.inf), sum(log_probs[t, v] for t, v in enumerate(path)))
    return found


class TestTheSearchOfAConfiguration:
    @pytest.fixture(autouse=True)
    def needs_flashlight(self) -> None:
        pytest.importorskip("flashlight.lib.text", reason="flashlight-text is built for Python 3.12 and older")

    @pytest.fixture
    def arpa(self, tmp_path: Path) -> str:
        (tmp_path / "lm.arpa").write_text(ARPA)
        return str(tmp_path / "lm.arpa")

    @pytest.mark.parametrize(("weight", "insertion"), [(0.0, 0.0), (0.5, 0.0), (1.3, 0.7)])
    def test_scores_are_those_of_exhaustive_summation(self, arpa: str, weight: float, insertion: float) -> None:
        for seed in range(5):
            log_probs = random_table(5, 4, seed)
            search = BeamSearch(SearchConfig("beam", 2000, arpa, weight, insertion), VOCABULARY, 0)
            expected = {
                text: score + weight * lm_score(text) + insertion * len(text) for text, score in totals(log_probs).items()
            }
            found = search.nbest(log_probs)
            assert len(found) > 20 and [score for _, score in found] == sorted((s for _, s in found), reverse=True)
            for text, score in found:
                assert score == pytest.approx(expected[text], abs=1e-4)
            assert found[0][1] == pytest.approx(max(expected.values()), abs=1e-4)

    @pytest.mark.parametrize("beam", [1, 2, 10])
    def test_the_best_score_is_never_below_greedys(self, beam: int) -> None:
        search = BeamSearch(SearchConfig("beam", beam), [str(token) for token in range(12)], 0)
        for seed in range(40):
            log_probs = random_table(15, 12, seed, sharpness=seed % 5)
            assert search(frames_of(log_probs)).score >= log_probs.max(axis=1).sum() - 1e-3

    def test_spans_are_in_order_and_within_the_frames(self) -> None:
        search = BeamSearch(SearchConfig("beam", 10), [str(token) for token in range(6)], 0)
        for seed in range(40):
            hypothesis = search(frames_of(random_table(seed % 12, 6, seed)))
            places = [place for span in hypothesis.spans for place in (span.start, span.end)]
            assert len(hypothesis.spans) == len(hypothesis.tokens) and places == sorted(places)
            assert all(span.start < span.end <= seed % 12 for span in hypothesis.spans)

    def test_a_language_model_changes_the_text(self, arpa: str) -> None:
        log_probs = np.log(np.array([[0.05, 0.44, 0.46, 0.05], [0.85, 0.05, 0.05, 0.05]], np.float32))
        frames = frames_of(log_probs)
        assert build_search(SearchConfig(), VOCABULARY, 0)(frames).tokens == (2,)
        assert build_search(SearchConfig("beam", 10, arpa, 0.5), VOCABULARY, 0)(frames).tokens == (1,)
        assert build_search(SearchConfig("beam", 10, arpa), VOCABULARY, 0) is build_search(
            SearchConfig("beam", 10, arpa), VOCABULARY, 0
        )

    def test_what_is_no_language_model_of_the_tokens_is_one_line(self, arpa: str, tmp_path: Path, capfd) -> None:
        (tmp_path / "text.arpa").write_text("HELLO\n")
        (tmp_path / "binary.arpa").write_bytes(b"mmap lm http://kheafield.com/code\xff\xfe")
        (tmp_path / "cut.arpa").write_text(ARPA[:-60])
        for name, tokens, message in (
            (arpa, ("<blank>", "X", "Y", "A"), "lacks 2.*other units"),
            (f"{tmp_path}/none.arpa", VOCABULARY, "no such language model"),
            (f"{tmp_path}/text.arpa", VOCABULARY, "no ARPA file"),
            (f"{tmp_path}/binary.arpa", VOCABULARY, "no ARPA file"),
            (f"{tmp_path}/cut.arpa", VOCABULARY, "KenLM cannot read it"),
        ):
            with pytest.raises(UserError, match=message) as caught:
                BeamSearch(SearchConfig("beam", 10, name), tokens, 0)
            assert "\n" not in str(caught.value)
        assert capfd.readouterr().err == ""

    def test_the_exit_that_stopped_gives_the_beams_text(self) -> None:
        speech = [np.random.default_rng(0).standard_normal(length).astype(np.float32) * 0.1 for length in (9000, 16000)]
        asr = tiny.asr(tiny.model(seed=2), DecodingConfig(EntropyPolicy(0.2), search=SearchConfig("beam", 5)))
        together = asr.recognise(speech)
        for result, samples in zip(together, speech, strict=True):
            alone = asr.recognise([samples])[0]
            assert (result.text, result.exit_layer) == (alone.text, alone.exit_layer)
            assert [(word.text, word.start, word.end) for word in result.words] == [
                (word.text, word.start, word.end) for word in alone.words
            ]
            assert result.score == pytest.approx(alone.score, abs=1e-4)
            assert " ".join(word.text for word in result.words) == result.text
