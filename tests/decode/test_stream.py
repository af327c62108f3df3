"""A stream's cuts and texts, by an engine of plain labels: no torch, no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ee.compute import MacTable, Parabola
from espnet_ee.decode.stream import Endpoint, Final, Partial, SpeechStream
from espnet_ee.errors import UsageError, UserError
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.policy.frames import Frames

LAYERS = (1, 2, 3)
MACS = MacTable(
    1, 1, (1,), 1, {layer: (Parabola(layer, layer),) for layer in LAYERS}, {layer: Parabola(1, 1) for layer in LAYERS}
)
BLANK, A, B, SPACE = range(4)
SAMPLES, AHEAD = 10, 3  # samples of a frame, and beyond it, that it needs


@dataclass(frozen=True)
class FakeState:
    labels: np.ndarray
    layer: int

    @property
    def feature_frames(self) -> tuple[int, ...]:
        return (len(self.labels),)


@dataclass
class FakeStretch:
    labels: list[int] = field(default_factory=list)
    shallow: int = 1

    @property
    def frames(self) -> int:
        return len(self.labels)

    def advance(self, samples: np.ndarray, frames: int) -> Frames:
        assert self.frames < frames <= self.frames + 4
        self.labels = [round(float(value) * 10) for value in samples[::SAMPLES][:frames]]
        return frames_of(np.array(self.labels))

    def states(self) -> list[FakeState]:
        return [FakeState(np.array(self.labels), 1)]


def frames_of(labels: np.ndarray) -> Frames:
    sure = np.full(len(labels), 0.9)
    return Frames(labels, np.log(sure), 1 - sure, 4)


@dataclass
class FakeSession:
    """A sample of 0.1 is an A, of 0.2 a B; the last exit alone hears that every A was a B. A frame is half a second."""

    exit_layers: tuple[int, ...] = LAYERS
    macs: MacTable = MACS
    blank: int = BLANK
    tokens: Sequence[str] = ("<blank>", "A", "B", "<space>")
    token_type: str = "char"
    sample_rate: int | None = 2 * SAMPLES
    frame_seconds: float | None = 0.5
    chunk: int = 4
    computed: list[int] = field(default_factory=list)

    def use_threads(self, count: int) -> None: ...

    def start(self, batch: Sequence[np.ndarray]) -> FakeState:
        raise AssertionError("a stream begins nothing anew")

    def advance(self, state: FakeState) -> FakeState:
        self.computed.append(state.layer + 1)
        return replace(state, layer=state.layer + 1)

    def read(self, state: FakeState, places: Sequence[int], want: frozenset[str]) -> list[Frames]:
        return [frames_of(np.where(state.labels == A, B, state.labels) if state.layer == 3 else state.labels)]

    def select(self, state: FakeState, places: Sequence[int]) -> FakeState:
        return state

    def new_stretch(self) -> FakeStretch:
        return FakeStretch()

    def final_samples(self, frames: int) -> int:
        return frames * SAMPLES + AHEAD

    def frames_of(self, samples: int) -> int:
        return max(1, samples // SAMPLES)


def audio(labels: Sequence[int]) -> np.ndarray:
    return np.repeat(np.array(labels, np.float32) / 10, SAMPLES)


def opened(policy: FixedExitPolicy | None = None, **endpoint: float) -> tuple[SpeechStream, FakeSession]:
    session = FakeSession()
    settings_ = {"silence": 2.0, "nothing": 4.0, "longest": 30.0, **endpoint}
    return SpeechStream(session, DecodingConfig(policy), Endpoint(**settings_)), session


def heard(stream: SpeechStream, pieces: Sequence[np.ndarray]) -> tuple[list[tuple[float, float, str]], list[str]]:
    """Start, end and text of all finals, and the partial texts as they changed."""
    finals: list[Final] = []
    texts: list[str] = []
    for partial in [*map(stream.feed, pieces), stream.finish()]:
        finals += partial.finals
        if partial.text != (texts[-1] if texts else ""):
            texts.append(partial.text)
    return [(final.start, final.end, final.text) for final in finals], texts


def test_partial_texts_are_the_shallow_exits_and_finals_the_deep_ones() -> None:
    stream, session = opened(nothing=60.0)
    assert stream.feed(audio([A, SPACE, B, BLANK])) == Partial("", 0.0)  # a frame sees AHEAD
    assert stream.feed(audio([BLANK])) == Partial("A B", 0.0)
    assert session.computed == []
    assert stream.feed(audio([BLANK] * 2)) == Partial("A B", 0.0)
    partial = stream.feed(audio([BLANK] * 5))  # 8 frames are complete: 5 blanks, 2.5 s
    ((final,), text) = partial.finals, partial.text
    assert (final.text, final.start, final.end, final.recognition.exit_layer) == ("B B", 0.0, 4.0, 3)
    assert (text, partial.start, session.computed) == ("", 2.0, [2, 3])  # the last chunk of silence is heard again
    assert stream.feed(audio([A] * 5)).text == "A"
    ((final,), end) = stream.finish().finals, 8.5
    assert (final.text, final.start, final.end) == ("B", 2.0, end)
    assert [(word.text, word.start, word.end) for word in final.words] == [("B", 6.0, 8.5)]
    assert stream.finish() == Partial("", end)  # nothing is left


def test_the_policy_says_how_deep_a_final_goes() -> None:
    for layer, text, computed in ((1, "A", []), (2, "A", [2]), (3, "B", [2, 3])):
        stream, session = opened(FixedExitPolicy(layer))
        finals, _ = heard(stream, [audio([A, A])])
        assert [final[2] for final in finals] == [text] and session.computed == computed
    with pytest.raises(UserError, match="exit"):
        opened(FixedExitPolicy(7))


def test_where_nobody_speaks_nothing_deep_is_computed() -> None:
    stream, session = opened()
    finals, texts = heard(stream, [audio([BLANK] * 100)])
    assert (finals, texts, session.computed) == ([], [], [])
    stream, session = opened()
    stream.feed(audio([BLANK] * 101))
    assert stream.feed(audio([A] * 8)).text == "A"
    (final,) = stream.finish().finals
    assert final.start > 40 and session.computed == [2, 3]


def test_nobody_speaks_longer_than_the_longest() -> None:
    stream, _ = opened(longest=6.0)
    finals, _ = heard(stream, [audio([A, SPACE] * 18)])  # 18 s without a pause
    assert finals == [
        (0.0, 6.0, "B B B B B B"), (6.0, 12.0, "B B B B B B"), (12.0, 18.0, "B B B B B B")
    ]  # fmt: skip


LABELS = st.lists(st.sampled_from([BLANK, BLANK, BLANK, A, B, SPACE]), max_size=120)
SILENCES = st.sampled_from([0.5, 1.0, 2.0])


@given(labels=LABELS, cuts=st.lists(st.integers(0, 1200), max_size=12), silence=SILENCES)
@settings(max_examples=60, deadline=None)
def test_the_pieces_do_not_matter(labels: list[int], cuts: list[int], silence: float) -> None:
    whole = audio(labels)
    finals, _ = heard(opened(silence=silence, longest=10.0)[0], [whole])
    pieces = np.split(whole, sorted(min(cut, len(whole)) for cut in cuts))
    assert heard(opened(silence=silence, longest=10.0)[0], pieces)[0] == finals
    assert bool(finals) == any(label in (A, B) for label in labels)


@given(labels=LABELS, silence=SILENCES)
@settings(max_examples=60, deadline=None)
def test_every_token_is_in_one_final(labels: list[int], silence: float) -> None:
    labels = [B if label == A else label for label in labels]
    finals, _ = heard(opened(silence=silence, longest=1e3)[0], [audio(labels)])
    spoken = [label for label, _ in groupby(labels)].count(B)
    assert sum(text.count("B") for _, _, text in finals) == spoken
    assert all(earlier[1] <= later[1] and earlier[0] < later[0] for earlier, later in pairwise(finals))


@pytest.mark.parametrize("seconds", [0.1, 0.5, 2.0, 2.1])
def test_an_endpoint_within_a_chunk_gets_on(seconds: float) -> None:
    for labels in ([BLANK] * 50, [B, BLANK] * 25):
        finals, _ = heard(opened(silence=seconds, nothing=seconds)[0], [audio(labels)])
        assert sum(text.count("B") for _, _, text in finals) == labels.count(B)


def test_mistakes() -> None:
    for name in ("silence", "nothing", "longest"):
        with pytest.raises(UsageError, match=f"endpoint: {name} is 0 seconds"):
            Endpoint(**{name: 0})
    stream, _ = opened()
    for samples, message in (
        (np.zeros(5, int), "not int64"),
        (np.zeros((5, 2)), "takes audio"),
        ([0.0], "array of samples, not list"),
        (np.full(5, np.nan), "not finite"),
    ):
        with pytest.raises(UserError, match=message):
            stream.feed(samples)
    assert stream.feed(np.zeros(0)) == Partial("", 0.0)
