"""Beam search: both backends against brute force, a naive beam and each other."""

from __future__ import annotations

import itertools
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ee.errors import UserError
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.frames import Frames
from espnet_ee.policy.packaged import read_configs, write_configs
from espnet_ee.policy.posterior import PosteriorPolicy
from espnet_ee.policy.searching import SearchConfig
from espnet_ee.search.arpa import NgramScorer
from espnet_ee.search.beam import BeamSearch, build_search, nbest_search, without_blank_frames
from espnet_ee.search.kenlm import KenlmScorer, open_ngrams
from espnet_ee.search.prefix import PrefixSearch
from espnet_ee.text import collapse
from tests import tiny

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
    return Frames(log_probs.argmax(-1), best, best, log_probs.shape[1], log_probs)


def random_table(frames: int, vocabulary: int, seed: int, sharpness: float = 1.0) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(0, sharpness, (frames, vocabulary))
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def totals(log_probs: np.ndarray) -> dict[tuple[int, ...], float]:
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        text = tuple(collapse(path))
        found[text] = np.logaddexp(found.get(text, -np.inf), sum(log_probs[t, v] for t, v in enumerate(path)))
    return found


def naive_beam(log_probs: np.ndarray, beam: int, tokens: int) -> dict[tuple[int, ...], float]:
    """Prefix beam search as textbooks write it: every token of every prefix, all sums, then the best."""
    kept = {(): (0.0, -np.inf)}
    for row in log_probs:
        ways: list[tuple[tuple[int, ...], float, float]] = []
        for prefix, (blank, spoken) in kept.items():
            both = np.logaddexp(blank, spoken)
            for token in np.argsort(-row, kind="stable")[:tokens].tolist():
                if token == 0:
                    ways.append((prefix, both + row[0], -np.inf))
                elif prefix[-1:] == (token,):
                    ways.append((prefix, -np.inf, spoken + row[token]))
                    ways.append(((*prefix, token), -np.inf, blank + row[token]))
                else:
                    ways.append(((*prefix, token), -np.inf, both + row[token]))
        following: dict[tuple[int, ...], tuple[float, float]] = {}
        for prefix, blank, spoken in ways:
            before = following.get(prefix, (-np.inf, -np.inf))
            following[prefix] = (np.logaddexp(before[0], blank), np.logaddexp(before[1], spoken))
        best = sorted(following, key=lambda prefix: -np.logaddexp(*following[prefix]))[:beam]
        kept = {prefix: following[prefix] for prefix in best}
    return {prefix: float(np.logaddexp(*parts)) for prefix, parts in kept.items()}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(2, 9), st.integers(1, 12), st.integers(1, 9), st.floats(0.3, 6))
def test_what_our_own_leaves_out_could_not_have_been_kept(
    seed: int, frames: int, vocabulary: int, beam: int, tokens: int, sharpness: float
) -> None:
    log_probs = random_table(frames, vocabulary, seed, sharpness).astype(np.float64)
    found = dict(PrefixSearch(beam, tokens, 600.0, 0).texts(log_probs))
    expected = {text: score for text, score in naive_beam(log_probs, beam, tokens).items() if score > -np.inf}
    assert found == pytest.approx(expected, abs=1e-8)


def test_our_own_outlives_what_numbers_cannot_say(tmp_path: Path) -> None:
    (tmp_path / "lm.arpa").write_text(ARPA)
    impossible = np.full((3, 4), -1e30, np.float32)
    impossible[[0, 1, 2], [1, 2, 3]] = 0
    scorer = NgramScorer(tmp_path / "lm.arpa", ("<blank>", "X", "A", "▁"), 0, 400.0)
    assert [text for text, _ in PrefixSearch(4, 4, 50.0, 0, scorer).texts(impossible)]
    assert PrefixSearch(4, 4, 50.0, 0).texts(np.full((2, 3), -np.inf, np.float32)) == []


class TestNBest:
    @pytest.fixture
    def beam(self):
        def make(beam: int, vocabulary: int, blank: int = 0) -> BeamSearch:
            return BeamSearch(SearchConfig("beam", beam), [str(token) for token in range(vocabulary)], blank)

        return make

    def test_scores_are_those_of_all_alignments(self, beam) -> None:
        log_probs = random_table(5, 4, 0)
        # A beam that can hold every prefix prunes nothing.
        found = beam(600, 4).scores(log_probs)
        assert found == pytest.approx(sorted(totals(log_probs).values(), reverse=True)[: len(found)], rel=1e-4)
        assert len(found) > 10

    def test_nothing_to_search(self, beam) -> None:
        search = beam(4, 5)
        assert search.scores(np.zeros((0, 5), np.float32)) == ()
        assert search.scores(np.full((3, 5), np.nan, np.float32)) == ()
        one = np.full((3, 5), np.log(0.2), np.float32)
        assert search.scores(one) != ()
        one[1, 2] = np.nan
        assert search.scores(one) == ()

    def test_ten_tokens_are_tried_in_a_frame(self, beam) -> None:
        frame = np.log(np.arange(12, 0, -1, dtype=np.float32) / 78)[None]
        assert len(beam(100, 12).scores(frame)) == 10

    def test_so_many_tokens_as_are_asked_for(self) -> None:
        frame = np.log(np.arange(12, 0, -1, dtype=np.float32) / 78)[None]
        config = SearchConfig("beam", 100, tokens=3)
        assert len(BeamSearch(config, [str(token) for token in range(12)], 0).nbest(frame)) == 3

    def test_what_falls_far_behind_is_dropped(self, beam) -> None:
        assert beam(100, 3).scores(np.array([[0, -49.5, -90]], np.float32)) == pytest.approx((0.0, -49.5))
        assert beam(100, 3).scores(np.array([[0, -50.5, -90]], np.float32)) == (0.0,)
        narrow = BeamSearch(SearchConfig("beam", 100, width=5), ["0", "1", "2"], 0)
        assert narrow.scores(np.array([[0, -4.5, -5.5]], np.float32)) == pytest.approx((0.0, -4.5))

    @pytest.mark.parametrize("nbest", [1, 2, 5])
    def test_it_gives_no_more_than_was_asked_for(self, beam, nbest: int) -> None:
        scores = beam(nbest, 6).scores(random_table(9, 6, 0))
        assert len(scores) == nbest and list(scores) == sorted(scores, reverse=True)

    def test_any_token_can_be_the_blank(self, beam) -> None:
        log_probs = random_table(5, 4, 1)
        moved = np.roll(log_probs, -1, axis=1)  # token 0 becomes token 3
        assert beam(600, 4, blank=3).scores(moved) == pytest.approx(beam(600, 4).scores(log_probs), rel=1e-5)

    def test_frames_that_are_surely_blank_can_be_left_out(self) -> None:
        log_probs = random_table(6, 3, 4)
        sure = [0, 2, 3, 5]
        log_probs[sure] = np.log(np.array([[0.98, 0.015, 0.005]], np.float32))
        allowed: dict[tuple[int, ...], float] = {}
        for path in itertools.product(range(3), repeat=6):
            if all(path[frame] == 0 for frame in sure):
                text = tuple(collapse(path))
                allowed[text] = np.logaddexp(allowed.get(text, -np.inf), sum(log_probs[t, v] for t, v in enumerate(path)))
        search = BeamSearch(SearchConfig("beam", 100, blank_skip=0.97), ["0", "1", "2"], 0)
        found = dict(search.nbest(log_probs))
        assert found == pytest.approx(allowed, abs=1e-4)
        assert len(without_blank_frames(log_probs, 0, 0.97)) == 5
        assert (1, 1) in found  # the blanks between two equal tokens still part them

    @pytest.mark.parametrize("seed", range(4))
    def test_without_such_frames_nothing_changes(self, seed: int) -> None:
        log_probs = random_table(20, 6, seed)
        assert without_blank_frames(log_probs, 0, 0.999) is log_probs


def test_the_online_policy_reads_it_and_does_not_see_the_batch() -> None:
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


def test_an_nbest_list_is_of_the_search_that_finds_the_text(tmp_path: Path) -> None:
    (tmp_path / "lm.arpa").write_text(ARPA)
    config = SearchConfig("beam", 3, lm=str(tmp_path / "lm.arpa"))
    assert nbest_search(config, 8, VOCABULARY, 0).config == SearchConfig("beam", 8, lm=config.lm)
    assert nbest_search(config, 2, VOCABULARY, 0).config == config
    assert nbest_search(SearchConfig(), 2, VOCABULARY, 0).config == SearchConfig("beam", 2)


@pytest.mark.parametrize("with_kenlm", [True, False])
class TestTheSearchOfAConfiguration:
    @pytest.fixture(autouse=True)
    def engine(self, with_kenlm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        if with_kenlm:
            pytest.importorskip("kenlm", reason="kenlm-ex is not built for every processor")
        else:
            monkeypatch.setattr("espnet_ee.search.kenlm.find_spec", lambda name: None)

    @pytest.fixture
    def arpa(self, tmp_path: Path) -> str:
        (tmp_path / "lm.arpa").write_text(ARPA)
        return str(tmp_path / "lm.arpa")

    @pytest.mark.parametrize(("weight", "insertion"), [(0.0, 0.0), (0.5, 0.0), (1.3, 0.7)])
    def test_scores_are_those_of_exhaustive_summation(self, arpa: str, weight: float, insertion: float) -> None:
        for seed in range(5):
            log_probs = random_table(5, 4, seed)
            config = SearchConfig("beam", 2000, lm=arpa, lm_weight=weight, insertion=insertion)
            search = BeamSearch(config, VOCABULARY, 0)
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

    def test_what_is_no_language_model_of_the_tokens_is_one_line(self, arpa: str, tmp_path: Path, capfd) -> None:
        broken = {
            "text": ("HELLO\n", "no ARPA file"),
            "mark": ("\ufeff" + ARPA, "mark.arpa:1: begins with a byte order mark; remove it"),
            "cut": (ARPA[:-8], "cut.arpa:17: .*is missing, so the ARPA file is damaged"),
            "few": (ARPA.replace("-0.7\tB\t-0.1\n", ""), "1 n-grams of order 1 are missing"),
            "many": (ARPA.replace("ngram 2=4", "ngram 2=3"), "more n-grams of order 2"),
            "number": (ARPA.replace("-0.7\tB", "minus\tB"), r"arpa:10: no n-gram of order 1"),
            "positive": (ARPA.replace("-0.7\tB", "0.7\tB"), r"arpa:10: no n-gram of order 1"),
            "ends": (ARPA.replace("</s>", "</S>"), "lacks </s>"),
            "huge": (ARPA.replace("ngram 2=4", "ngram 2=99999999999999"), "are missing"),
        }
        for name, (content, _) in broken.items():
            (tmp_path / f"{name}.arpa").write_text(content)
        (tmp_path / "binary.arpa").write_bytes(b"mmap lm http://kheafield.com/code\xff\xfe")
        for name, tokens, message in (
            (arpa, ("<blank>", "X", "Y", "A"), "lacks 2.*other units"),
            (f"{tmp_path}/none.arpa", VOCABULARY, "no such language model"),
            (f"{tmp_path}/binary.arpa", VOCABULARY, "KenLM cannot read it|KenLM is not installed"),
            *((f"{tmp_path}/{name}.arpa", VOCABULARY, message) for name, (_, message) in broken.items()),
        ):
            with pytest.raises(UserError, match=message) as caught:
                BeamSearch(SearchConfig("beam", 10, lm=name), tokens, 0)
            assert "\n" not in str(caught.value)
        assert capfd.readouterr().err == ""


def test_a_language_model_changes_the_text(tmp_path: Path) -> None:
    (tmp_path / "lm.arpa").write_text(ARPA)
    arpa = str(tmp_path / "lm.arpa")
    log_probs = np.log(np.array([[0.05, 0.44, 0.46, 0.05], [0.85, 0.05, 0.05, 0.05]], np.float32))
    frames = frames_of(log_probs)
    assert build_search(SearchConfig(), VOCABULARY, 0)(frames).tokens == (2,)
    assert build_search(SearchConfig("beam", 10, lm=arpa, lm_weight=0.5), VOCABULARY, 0)(frames).tokens == (1,)
    assert build_search(SearchConfig("beam", 10, lm=arpa), VOCABULARY, 0) is build_search(
        SearchConfig("beam", 10, lm=arpa), VOCABULARY, 0
    )


def test_ngram_scores_are_kenlms(tmp_path: Path) -> None:
    pytest.importorskip("kenlm", reason="kenlm-ex is not built for every processor")
    trigrams = "\n\\3-grams:\n-0.05\tA B </s>\n-0.6\t<s> A B\n-0.7\tA B A\n"
    text = ARPA.replace("ngram 2=4\n", "ngram 2=5\nngram 3=3\n").replace(
        "-0.1\t<space> A\n", "-0.1\t<space> A\t-0.25\n-0.35\tB A\t-0.15\n"
    )
    text = text.replace("-0.3\tA B\n", "-0.3\tA B\t-0.05\n").replace("\n\\end\\", f"{trigrams}\n\\end\\")
    (tmp_path / "lm.arpa").write_text(text)
    tokens = ("<blank>", "A", "B", "▁", "<unk>")
    kenlm, own = (scorer(tmp_path / "lm.arpa", tokens, 0, 0.7) for scorer in (KenlmScorer, NgramScorer))
    assert isinstance(open_ngrams(tmp_path / "lm.arpa", tokens, 0, 0.7), KenlmScorer)
    for spoken in itertools.chain.from_iterable(itertools.product((1, 2, 3, 4), repeat=length) for length in range(5)):
        theirs, ours = kenlm.start(), own.start()
        for token in spoken:
            theirs, score = kenlm.step(theirs, token)
            ours, added = own.step(ours, token)
            assert added == pytest.approx(score, abs=1e-5)
        assert own.end(ours) == pytest.approx(kenlm.end(theirs), abs=1e-5)


WRITTEN = r"""\data\
ngram 1=5
ngram 2=3

\1-grams:
-99	<s>	-0.3
-0.7	</s>
-0.9	A	-0.2
-0.8	B	-0.1
-1.5	<unk>

\2-grams:
-0.2	<s> A
-0.4	A B
-0.5	B </s>

\end\
"""


def test_kenlms_binary_is_its_arpa_file(tmp_path: Path) -> None:
    """kenlm.bin is what KenLM itself (its library's ``write_mmap``, probing) has written of WRITTEN."""
    pytest.importorskip("kenlm", reason="kenlm-ex is not built for every processor")
    (tmp_path / "lm.arpa").write_text(WRITTEN)
    tokens = ("<blank>", "A", "B", "<unk>")
    binary = open_ngrams(Path(__file__).with_name("kenlm.bin"), tokens, 0, 0.7)
    arpa = NgramScorer(tmp_path / "lm.arpa", tokens, 0, 0.7)
    assert isinstance(binary, KenlmScorer)
    for spoken in itertools.chain.from_iterable(itertools.product((1, 2, 3), repeat=length) for length in range(4)):
        theirs, ours = binary.start(), arpa.start()
        for token in spoken:
            (theirs, score), (ours, added) = binary.step(theirs, token), arpa.step(ours, token)
            assert added == pytest.approx(score, abs=1e-5)
        assert arpa.end(ours) == pytest.approx(binary.end(theirs), abs=1e-5)


def test_kenlms_binaries_are_told_from_arpa_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is broken."""
    path = tmp_path / "lm.bin"
    path.write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0" + bytes(64))
    with pytest.raises(UserError, match="give the ARPA file"):
        NgramScorer(path, VOCABULARY, 0, 0.5)
    if find_spec("kenlm"):
        with pytest.raises(UserError, match=r"lm\.bin: KenLM cannot read it"):
            open_ngrams(path, VOCABULARY, 0, 0.5)
    monkeypatch.setattr("espnet_ee.search.kenlm.find_spec", lambda name: None)
    with pytest.raises(UserError, match="KenLM is not installed"):
        open_ngrams(path, VOCABULARY, 0, 0.5)
    config = DecodingConfig(search=SearchConfig("beam", lm=str(path)))
    with pytest.raises(UserError, match="is KenLM's binary; name the ARPA file"):
        write_configs(tmp_path, {"x": config})
    (tmp_path / "decode_x.yaml").write_text("search: {kind: beam, lm: lm.bin}\n")
    with pytest.raises(UserError, match=r"decode_x\.yaml: .*KenLM's binary, refused"):
        read_configs(tmp_path, None, tmp_path, (1, 2))


def test_the_exit_that_stopped_gives_the_beams_text() -> None:
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
