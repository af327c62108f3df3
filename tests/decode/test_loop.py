"""The loop that stops, driven by an engine of plain tables: no torch, no model."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from espnet_ee.compute import MacTable, Parabola
from espnet_ee.decode.loop import recognise
from espnet_ee.decode.recognition import Recognition
from espnet_ee.decode.session import UtteranceError
from espnet_ee.errors import UserError
from espnet_ee.policy.base import ExitPolicy, choose_exit
from espnet_ee.policy.cluster_entropy import ClusterEntropyPolicy
from espnet_ee.policy.confidence import ConfidencePolicy
from espnet_ee.policy.confidences import ConfidenceMap
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.policy.frames import Frames
from espnet_ee.policy.learned import LearnedPolicy
from espnet_ee.policy.patience import PatiencePolicy
from espnet_ee.policy.posterior import PosteriorPolicy
from espnet_ee.policy.searching import SearchConfig
from espnet_ee.policy.table import macs_of_stop
from espnet_ee.search.align import aligned, chain
from espnet_ee.search.words import words_of

LAYERS = (2, 4, 6)
MACS = MacTable(
    min_frames=3,
    stride=2,
    front=(10, 11),
    front_step=7,
    blocks={2: (Parabola(100, 20, 2),), 4: (Parabola(200, 40, 4),), 6: (Parabola(300, 60, 6),)},
    heads={2: Parabola(5, 5), 4: Parabola(50, 50), 6: Parabola(500, 500)},
)


@dataclass(frozen=True)
class FakeState:
    rows: tuple[int, ...]
    feature_frames: tuple[int, ...]
    layer: int = 0


@dataclass
class FakeSession:
    """An utterance is the random numbers that its exits say; what was asked of the engine is kept."""

    exit_layers: tuple[int, ...] = LAYERS
    macs: MacTable = MACS
    blank: int = 0
    tokens: Sequence[str] = ("<blank>", "A", "B", "<space>")
    token_type: str = "char"
    sample_rate: int | None = 10
    frame_seconds: float | None = 0.2  # two samples
    asked: list[tuple] = field(default_factory=list)
    kept: list[tuple[int, ...]] = field(default_factory=list)
    speech: Sequence[np.ndarray] = ()
    broken: ClassVar[float] = -1.0

    def use_threads(self, count: int) -> None:
        self.asked.append(("threads", count))

    def start(self, batch: Sequence[np.ndarray]) -> FakeState:
        self.speech = batch
        return FakeState(tuple(range(len(batch))), tuple(map(len, batch)))

    def advance(self, state: FakeState) -> FakeState:
        layer = next(layer for layer in self.exit_layers if layer > state.layer)
        self.asked.append(("advance", layer, state.rows))
        return replace(state, layer=layer)

    def read(self, state: FakeState, places: Sequence[int], want: frozenset[str]) -> list[Frames]:
        rows = [state.rows[place] for place in places]
        self.asked.append(("read", state.layer, tuple(rows), want))
        frames = [self._frames(self.speech[row], state.layer) for row in rows]
        return frames if "log_probs" in want else [replace(one, log_probs=None) for one in frames]

    def select(self, state: FakeState, places: Sequence[int]) -> FakeState:
        rows, frames = ([values[place] for place in places] for values in (state.rows, state.feature_frames))
        self.kept.append(tuple(rows))
        return replace(state, rows=tuple(rows), feature_frames=tuple(frames))

    def _frames(self, speech: np.ndarray, layer: int) -> Frames:
        frames = self.macs.encoder_frames(len(speech))
        random = np.random.default_rng([int(abs(speech[0]) * 1e6), layer])
        logits = random.normal(size=(frames, 4)) * random.uniform(0.5, 4)
        if speech[0] == self.broken:
            logits[0] = np.nan
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        labels = p.argmax(-1)
        return Frames(labels, np.log(p.max(-1)), -(p * np.log(p)).sum(-1), 4, np.log(p))


def utterances(count: int = 12) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [np.append(random.uniform(0.1, 1), np.zeros(random.integers(4, 30))) for _ in range(count)]


def run(policy: ExitPolicy | None, batch: Sequence[np.ndarray], keep: bool = False) -> tuple[list[Recognition], FakeSession]:
    session = FakeSession()
    return recognise(session, DecodingConfig(policy), batch, keep), session


LEARNED = LearnedPolicy(
    0.0,
    {"log_entropy": 1.0, "least_token_doubt": 0.5, "changed_tokens": 0.1, "agreeing_exits": -0.2},
    {2: 0.0, 4: 0.0},
    {2: 1.0, 4: 0.5},
)


@pytest.mark.parametrize("policy", [EntropyPolicy(0), ConfidencePolicy(0), PatiencePolicy(2), LEARNED, FixedExitPolicy(4)])
def test_online_is_the_replay_of_the_table_alone_and_in_a_batch(policy: ExitPolicy) -> None:
    batch = utterances()
    whole, _ = run(None, batch, keep=True)
    evidence = [[row.evidence for row in result.rows] for result in whole]
    if hasattr(policy, "threshold") and not isinstance(policy, PatiencePolicy):
        levels = sorted(policy.level(exits[:n]) for exits in evidence for n in (1, 2) if math.isfinite(policy.level(exits[:n])))
        policy = replace(policy, threshold=levels[len(levels) // 2])
    together, _ = run(policy, batch)
    alone = [run(policy, [samples])[0][0] for samples in batch]
    stops = [choose_exit(policy, exits) for exits in evidence]
    assert len(set(stops)) > 1 or isinstance(policy, FixedExitPolicy)
    for table, index, *results in zip(whole, stops, together, alone, strict=True):
        expected = table.rows[index]
        for result in results:
            assert (result.exit_layer, result.text) == (expected.evidence.layer, expected.hypothesis)
            assert result.macs == macs_of_stop(table.rows, index, policy.needs_every_exit)
            assert result.token_ids == expected.evidence.tokens
            assert result.score == expected.evidence.score
            assert [row.hypothesis for row in result.rows[:-1]] == [""] * (len(result.rows) - 1)
            assert len(result.seconds) == len(result.rows) == (index + 1 if policy.reads else 1)


def test_only_what_the_policy_reads_is_evidence() -> None:
    [result], _ = run(EntropyPolicy(0.0), utterances(1))
    for row in result.rows:
        assert math.isfinite(row.evidence.entropy)
        assert math.isnan(row.evidence.confidence) and math.isnan(row.evidence.blank_share) and row.evidence.tokens == ()
    [whole], _ = run(None, utterances(1), keep=True)
    assert all(math.isfinite(row.evidence.confidence) and row.evidence.tokens for row in whole.rows)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_policy_that_reads_nothing_has_one_head_computed_where_it_stops(layer: int) -> None:
    results, session = run(FixedExitPolicy(layer), utterances(3))
    assert [call[:2] for call in session.asked] == [*(("advance", one) for one in LAYERS if one <= layer), ("read", layer)]
    frames = [session.macs.encoder_frames(len(samples)) for samples in utterances(3)]
    for result, count, samples in zip(results, frames, utterances(3), strict=True):
        assert result.macs == MACS.encoder_macs(layer, len(samples)) + MACS.head_macs(layer, count)
        assert [row.evidence.layer for row in result.rows] == [layer]


def test_who_stopped_is_computed_no_more() -> None:
    batch = utterances()
    whole, _ = run(None, batch, keep=True)
    policy = EntropyPolicy(sorted(result.rows[0].evidence.entropy for result in whole)[5])
    results, session = run(policy, batch)
    left = {layer: tuple(i for i, r in enumerate(results) if r.exit_layer >= layer) for layer in LAYERS}
    assert [call[1:3] for call in session.asked if call[0] == "advance"] == [
        (layer, left[layer]) for layer in LAYERS if left[layer]
    ]
    assert [call[2] for call in session.asked if call[0] == "read"] == [left[layer] for layer in LAYERS if left[layer]]
    assert 0 < len(left[4]) < len(batch)


def test_log_probabilities_are_asked_for_by_nobody_but_an_nbest() -> None:
    _, session = run(EntropyPolicy(0.0), utterances(1))
    assert {call[3] for call in session.asked if call[0] == "read"} == {frozenset()}


def test_the_batch_is_cut_only_where_some_leave_and_some_stay() -> None:
    _, session = run(None, utterances(3))
    assert session.kept == []
    batch = utterances()
    whole, _ = run(None, batch, keep=True)
    results, session = run(EntropyPolicy(sorted(result.rows[0].evidence.entropy for result in whole)[5]), batch)
    left = [tuple(i for i, r in enumerate(results) if r.exit_layer > layer) for layer in LAYERS]
    assert session.kept == [
        rows for rows, more in zip(left, [tuple(range(len(batch))), *left], strict=False) if rows not in (more, ())
    ]
    assert len(session.kept) > 0


def test_without_asking_nothing_is_kept_of_the_exits_that_were_passed() -> None:
    session = FakeSession()
    [result] = recognise(session, DecodingConfig(), utterances(1))
    assert [row.evidence.layer for row in result.rows] == [6] and math.isnan(result.evidence.entropy)
    [result] = recognise(session, DecodingConfig(EntropyPolicy(0.0)), utterances(1))
    assert [row.hypothesis for row in result.rows[:-1]] == ["", ""] and result.evidence.layer == result.exit_layer == 6


def test_the_clock_is_shared_by_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 106.0, 112.0, 118.0])
    monkeypatch.setattr("espnet_ee.decode.loop.time.perf_counter", lambda: next(clock))
    results, _ = run(None, utterances(3), keep=True)
    assert [result.seconds for result in results] == [(2.0, 4.0, 6.0)] * 3


@pytest.mark.parametrize(
    ("policy", "nbest", "size"), [(None, 3, 3), (PosteriorPolicy(0.0, 4), 0, 4), (PosteriorPolicy(0.0, 4), 6, 6)]
)
def test_the_search_is_as_wide_as_who_asks_for_most(
    monkeypatch: pytest.MonkeyPatch, policy: ExitPolicy | None, nbest: int, size: int
) -> None:
    class Search:
        def scores(self, log_probs: np.ndarray) -> tuple[float, ...]:
            return (0.0, -float(len(log_probs)), *(-100.0,) * size)

    def search_of(config: SearchConfig, asked: int, *_: object) -> Search:
        sizes.append(asked)
        return Search()

    sizes: list[int] = []
    monkeypatch.setattr("espnet_ee.decode.reading.nbest_search", search_of)
    [result] = recognise(FakeSession(), DecodingConfig(policy), utterances(1), keep_every_exit=True, nbest=nbest)
    assert sizes == [size]
    scores = (0.0, -float(result.evidence.frames), *(-100.0,) * (size - 2))
    assert [row.evidence.nbest_scores for row in result.rows] == [scores] * len(result.rows)


def as_text(result: Recognition) -> str:
    """All but words and seconds. By their text: evidence that nobody made is nan, which equals nothing."""
    return repr((replace(result, words=(), seconds=()), result.rows))


def test_confidences_are_mapped_exit_by_exit_and_kept_as_the_model_has_them() -> None:
    """Of every engine, for the loop stands above them: the map of the exit that gave the text; evidence stays the model's own."""
    policy, confidences = EntropyPolicy(0.14), ConfidenceMap({2: ((0.0, 0.0), (1.0, 0.5)), 6: ((0.5, 0.3),)})
    plain, _ = run(policy, utterances(30), keep=True)
    mapped = recognise(FakeSession(), DecodingConfig(policy, confidences=confidences), utterances(30), True)
    assert {result.exit_layer for result in plain} == {2, 4, 6}
    for before, after in zip(plain, mapped, strict=True):
        wanted = {2: [word.confidence / 2 for word in before.words], 4: [word.confidence for word in before.words]}
        wanted[6] = [0.3] * len(before.words)
        assert [word.confidence for word in after.words] == pytest.approx(wanted[before.exit_layer])
        assert as_text(after) == as_text(before)
        assert all(len(row.confidences) == len(row.hypothesis.split()) for row in before.rows)
        assert list(before.rows[-1].confidences) == pytest.approx([word.confidence for word in before.words])
    assert all(row.confidences == () for result in run(policy, utterances(5))[0] for row in result.rows)


def test_words_are_those_of_the_text_inside_the_audio() -> None:
    results, _ = run(None, utterances(30))
    for samples, result in zip(utterances(30), results, strict=True):
        assert " ".join(word.text for word in result.words) == result.text
        times = [time for word in result.words for time in (word.start, word.end)]
        assert times == sorted(times) and all(0 <= time <= len(samples) / 10 for time in times)
        assert all(0 < word.confidence <= 1 for word in result.words)
    assert sum(len(result.words) for result in results) > 30
    for session in (FakeSession(frame_seconds=None), FakeSession(sample_rate=None)):
        timeless = recognise(session, DecodingConfig(), utterances())
        assert all(result.words == () for result in timeless) and sum(bool(result.text) for result in timeless) > 5


def read_of(samples: np.ndarray, layer: int) -> np.ndarray:
    """What an exit says of an utterance, (T, V)."""
    session = FakeSession()
    state = replace(session.start([samples]), layer=layer)
    log_probs = session.read(state, [0], frozenset({"log_probs"}))[0].log_probs
    assert log_probs is not None
    return log_probs


def times_of(result: Recognition) -> list[tuple[float, float]]:
    return [(word.start, word.end) for word in result.words]


@pytest.mark.parametrize("search", [SearchConfig(), SearchConfig("beam", 4)])
@pytest.mark.parametrize("policy", [EntropyPolicy(0.14), FixedExitPolicy(6), FixedExitPolicy(2)])
def test_words_get_their_times_by_another_exit_and_nothing_else_changes(policy: ExitPolicy, search: SearchConfig) -> None:
    batch, config = utterances(30), DecodingConfig(policy, search=search)
    plain, session = recognise(FakeSession(), config, batch), FakeSession()
    timed = recognise(session, replace(config, word_exit=2), batch)
    for samples, before, after in zip(batch, plain, timed, strict=True):
        (alone,) = recognise(FakeSession(), replace(config, word_exit=2), [samples])
        assert alone.words == after.words and alone.macs == after.macs
        placed = aligned(read_of(samples, 2), chain(after.token_ids, 0), 0)
        if placed is None or after.exit_layer == 2:  # of few frames the text may not fit into another exit's
            assert after.words == before.words
        else:
            words = words_of(after.tokens, placed[1], 0.2, len(samples) / 10)
            assert times_of(after) == [(word.start, word.end) for word in words]
        assert [word.confidence for word in after.words] == [word.confidence for word in before.words]
        aside = MACS.head_macs(2, MACS.encoder_frames(len(samples))) if policy == FixedExitPolicy(6) else 0
        assert as_text(after) == as_text(replace(before, macs=before.macs + aside))
    moved = sum(times_of(before) != times_of(after) for before, after in zip(plain, timed, strict=True))
    assert (moved > 5) == (policy != FixedExitPolicy(2))
    assert len([call for call in session.asked if call[:2] == ("read", 2)]) == 1


@pytest.mark.parametrize("fault", ["half the frames", "not a number", "fewer than the tokens"])
def test_words_keep_the_times_of_their_own_exit_where_the_other_cannot_tell(
    monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    plain, read = recognise(FakeSession(), DecodingConfig(), utterances()), FakeSession.read

    def damaged(self: FakeSession, state: FakeState, *arguments: object) -> list[Frames]:
        frames = read(self, state, *arguments)
        if state.layer > 2:
            return frames
        if fault == "not a number":
            return [replace(one, log_probs=one.log_probs * np.nan) for one in frames]
        if fault == "half the frames":
            return [replace(one, log_probs=one.log_probs[::2]) for one in frames]
        never = np.full_like(frames[0].log_probs[0], -np.inf)  # nothing but the blank can be
        never[0] = 0.0
        return [replace(one, log_probs=np.tile(never, (len(one.labels), 1))) for one in frames]

    monkeypatch.setattr(FakeSession, "read", damaged)
    timed = recognise(FakeSession(), DecodingConfig(word_exit=2), utterances())
    assert [result.words for result in timed] == [result.words for result in plain]
    with pytest.raises(UserError, match="word_exit is 3; the model's exits are 2, 4, 6"):
        recognise(FakeSession(), DecodingConfig(word_exit=3), utterances(1))


def test_cluster_heads_are_read_where_they_are_and_their_lack_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, read = ClusterEntropyPolicy(0.5), FakeSession.read
    with pytest.raises(UserError, match="has no cluster heads"):
        run(policy, utterances(1))

    def clustered(self: FakeSession, state: FakeState, places: Sequence[int], want: frozenset[str]) -> list[Frames]:
        frames = read(self, state, places, want)
        if state.layer == LAYERS[-1] or "cluster_entropy" not in want:  # the final exit has none
            return frames
        return [replace(one, cluster_entropy=np.full(len(one.labels), 0.75 - state.layer / 8)) for one in frames]

    monkeypatch.setattr(FakeSession, "read", clustered)
    assert [result.exit_layer for result in run(policy, utterances(3))[0]] == [4] * 3  # 0.5 is not below it
    assert [result.exit_layer for result in run(ClusterEntropyPolicy(0.0), utterances(3))[0]] == [6] * 3


@pytest.mark.parametrize("method", ["start", "read"])
def test_an_engine_that_answers_for_fewer_is_a_bug_and_no_shorter_result(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    answer = getattr(FakeSession, method)

    def fewer(self: FakeSession, *arguments: object) -> object:
        whole = answer(self, *arguments)
        return whole[:-1] if method == "read" else replace(whole, feature_frames=whole.feature_frames[:-1])

    monkeypatch.setattr(FakeSession, method, fewer)
    with pytest.raises(ValueError, match="zip"):
        run(None, utterances(3))


def test_an_utterances_error_says_its_reason_alone() -> None:
    assert str(UtteranceError("why", 3)) == "why"


def test_a_broken_output_is_said_and_not_an_empty_text() -> None:
    batch = [*utterances(2), np.full(9, FakeSession.broken)]
    for policy, keep in ((None, False), (EntropyPolicy(0.1), False), (None, True)):
        with pytest.raises(UtteranceError, match=r"exit 6 is not a number") as caught:
            run(policy, batch, keep)
        assert caught.value.place == 2


def test_what_is_no_batch_is_refused_and_an_empty_one_is_nothing() -> None:
    assert run(None, [])[0] == []
    for wrong in (utterances(1)[0], "a.wav"):
        with pytest.raises(UserError, match="list of utterances"):
            run(None, wrong)
    with pytest.raises(UserError, match="no exit after layer 5"):
        run(FixedExitPolicy(5), utterances(1))


def test_this_file_runs_where_torch_is_missing() -> None:
    """The loop, the policies and the searches import without torch and ESPnet."""
    program = (
        "import sys\nfor name in ('torch', 'espnet', 'espnet2'): sys.modules[name] = None\n"
        "import pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '--noconftest', sys.argv[1], '-k', 'replay or broken']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, __file__], capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=120
    )
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
