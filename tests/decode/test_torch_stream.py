"""What a stream says is what the model says under the same chunk mask of the same audio at once, however it comes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ee.api import EarlyExitASR
from espnet_ee.decode.loop import recognise
from espnet_ee.decode.recognition import Recognition
from espnet_ee.decode.stream import Endpoint, Final, SpeechStream
from espnet_ee.decode.torch_session import TorchSession
from espnet_ee.decode.torch_stream import TorchStreamSession
from espnet_ee.errors import UsageError, UserError
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.fixed import FixedExitPolicy
from tests import tiny

RATE = 16000
SIZES: dict[str, Any] = {"output_size": 16, "attention_heads": 2, "linear_units": 24, "num_blocks": 4, "cnn_module_kernel": 7}
WHOLE = Endpoint(1e3, 1e3, 1e3)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer": {"encoder_conf": {"convolution_norm": "layer", "subsampling": 8, "left_frames": 3}},
    "half": {"encoder_conf": {"half_rate": [3, 4]}},
    "lstm": {"model_conf": {"ctc_weight": 1.0, "exit_heads": "lstm"}},
}


@cache
def model(kind: str = "plain", **changes: Any) -> Any:
    chosen = KINDS[kind]
    conf = {**SIZES, "exit_layers": [1, 2, 4], "chunk_range": [2, 6], "left_frames": 6, **chosen.get("encoder_conf", {})}
    settings_ = {"frontend": "kaldi_fbank", "normalize": None, **chosen, **changes}
    made = tiny.model(**{**settings_, "encoder": "early_exit_fast_conformer", "encoder_conf": conf})
    with torch.no_grad():
        for head in (made.ctc, *made.exit_ctc.values()):
            getattr(head, "ctc_lo", getattr(head, "out", None)).bias[0] -= 0.5  # of blanks alone there would be no text
    return made


def speech(length: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_normal(length) * 0.2 * (1 + np.sin(np.arange(length) / 3000))).astype(np.float32)


def at_once(made: Any, samples: np.ndarray, chunk_ms: int, config: DecodingConfig) -> Recognition:
    session = TorchSession(made, RATE)
    session.use_chunk(chunk_ms, RATE)
    try:
        return recognise(session, config, [samples])[0]
    finally:
        session.use_chunk(None, RATE)


def streamed(session: TorchStreamSession, config: DecodingConfig, pieces: list[np.ndarray], endpoint: Endpoint) -> list[Final]:
    stream = SpeechStream(session, config, endpoint)
    return [final for partial in [*map(stream.feed, pieces), stream.finish()] for final in partial.finals]


def same(one: Recognition, other: Recognition) -> None:
    assert (one.text, one.token_ids, one.exit_layer) == (other.text, other.token_ids, other.exit_layer)
    assert one.macs <= other.macs  # the last features, of which no frame is made, are not looked at
    assert one.score == pytest.approx(other.score, abs=1e-3)
    assert [word.text for word in one.words] == [word.text for word in other.words]
    for ours, theirs in zip(one.words, other.words, strict=True):
        assert (ours.start, ours.end) == pytest.approx((theirs.start, theirs.end))


@pytest.mark.parametrize("kind", KINDS)
@given(
    length=st.one_of(st.integers(1, 3000), st.integers(3000, 24000)),
    cuts=st.lists(st.integers(0, 24000), max_size=6),
    chunk_ms=st.sampled_from([160, 320, 640]),
    exit_layer=st.sampled_from([1, 2]),
    policy=st.sampled_from([None, FixedExitPolicy(1), FixedExitPolicy(2), EntropyPolicy(0.19)]),
)
@settings(max_examples=6, deadline=None)
def test_however_it_comes_it_is_what_the_model_says_at_once(
    kind: str, length: int, cuts: list[int], chunk_ms: int, exit_layer: int, policy: Any
) -> None:
    made, samples, config = model(kind), speech(length), DecodingConfig(policy)
    session = TorchStreamSession(made, RATE, chunk_ms, exit_layer)
    finals = streamed(session, config, np.split(samples, sorted(min(cut, length) for cut in cuts)), WHOLE)
    expected = at_once(made, samples, chunk_ms, config)
    if finals:
        same(finals[0].recognition, expected)
        assert len(finals) == 1 and finals[0].start == 0.0
    else:
        assert not at_once(made, samples, chunk_ms, DecodingConfig(FixedExitPolicy(exit_layer))).token_ids or not expected.text


def steps(session: TorchStreamSession, samples: np.ndarray) -> Iterator[Any]:
    """A stretch after each of its chunks."""
    stretch = session.new_stretch()
    last = session.frames_of(len(samples))
    while stretch.frames < last:
        frames = min(last, stretch.frames + session.chunk)
        stretch.advance(samples, frames)
        yield stretch


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_equal(kind: str) -> None:
    made, samples = model(kind), speech(6 * RATE)
    session = TorchStreamSession(made, RATE, 320, 2)
    *_, stretch = steps(session, samples)
    whole = TorchSession(made, RATE)
    whole.use_chunk(320, RATE)
    state = whole.start([samples])
    states = list(stretch.states())
    states += [session.advance(states[-1])]
    for ours in states:
        state = whole.advance(state)
        assert ours.layer == state.layer and ours.output.hs.shape == state.output.hs.shape
        difference = (ours.output.hs - state.output.hs).abs().max()
        assert difference <= 1e-5, (ours.layer, float(difference))
    whole.use_chunk(None, RATE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_is_computed_when_no_more_than_half_a_window_of_features_is_missing(kind: str) -> None:
    session = TorchStreamSession(model(kind), RATE, 320)
    for frames in (session.chunk, 5 * session.chunk):
        samples = session.final_samples(frames)
        assert samples / RATE - frames * session.frame_seconds == pytest.approx(0.0075)
        assert session.frames_of(samples) == frames


def test_a_stretch_after_another_is_an_utterance_of_its_own() -> None:
    made, samples, config = model(), speech(12 * RATE), DecodingConfig()
    session = TorchStreamSession(made, RATE, 320)
    finals = streamed(session, config, np.array_split(samples, 50), Endpoint(1e3, 1e3, 3.0))
    assert [round(final.start, 2) for final in finals][:3] == [0.0, pytest.approx(3.2, abs=0.33), pytest.approx(6.4, abs=0.65)]
    for final in finals[:-1]:
        start = round(final.start * RATE)
        frames = round((final.end - final.start) / session.frame_seconds)
        stretch = session.new_stretch()
        for count in range(session.chunk, frames + 1, session.chunk):
            stretch.advance(samples[start:], count)  # whatever comes after it
        assert stretch.frames == frames
        expected = recognise_states(session, stretch)
        assert final.recognition.token_ids == expected
    assert finals[-1].recognition.token_ids == at_once(made, samples[round(finals[-1].start * RATE) :], 320, config).token_ids


def recognise_states(session: TorchStreamSession, stretch: Any) -> tuple[int, ...]:
    from espnet_ee.decode.loop import recognise_further

    return recognise_further(session, DecodingConfig(), stretch.states(), 10 * RATE).token_ids


def test_what_is_held_is_bounded() -> None:
    session = TorchStreamSession(model(), RATE, 160)
    stream = SpeechStream(session, DecodingConfig(FixedExitPolicy(1)), Endpoint(longest=2.0))
    held = []
    for second in range(40):
        stream.feed(speech(RATE, second))
        held.append((stream._stretch.size, stream._count))
    sizes, counts = zip(*held, strict=True)
    assert max(sizes[10:]) <= max(sizes[:10]) and max(counts) <= 2.25 * RATE


def test_global_mvn_streams(tmp_path: Any) -> None:
    random = np.random.default_rng(0)
    count, mean = 1000, random.normal(-8, 1, 80)
    np.savez(tmp_path / "stats.npz", count=count, sum=count * mean, sum_square=count * (mean**2 + 4))
    conf = {**SIZES, "exit_layers": [1, 2, 4], "chunk_range": [2, 6], "left_frames": 6}
    made = tiny.model(
        encoder="early_exit_fast_conformer",
        encoder_conf=conf,
        frontend="kaldi_fbank",
        normalize="global_mvn",
        normalize_conf={"stats_file": str(tmp_path / "stats.npz")},
    )
    samples = speech(30000)
    (final,) = streamed(TorchStreamSession(made, RATE, 160), DecodingConfig(), [samples], WHOLE)
    same(final.recognition, at_once(made, samples, 160, DecodingConfig()))


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({"encoder_conf": {**SIZES, "exit_layers": [1, 2, 4]}}, (320, None), "was not trained for chunks"),
        ({"frontend": "default"}, (128, None), "frontend: kaldi_fbank"),
        ({"normalize": "utterance_mvn"}, (320, None), "--feats_normalize global_mvn"),
        ({}, (330, None), "multiple of 40 ms"),
        ({}, (320, 3), "partial texts of exit 3: this model gives those of 1, 2, 4"),
        (
            {"encoder_conf": {**SIZES, "exit_layers": [1, 2, 4], "chunk_range": [2, 6], "half_rate": [2, 3]}},
            (320, 2),
            "those of 1$",
        ),
    ],
)
def test_what_cannot_stream_says_so(changes: dict[str, Any], words: tuple[int, int | None], message: str) -> None:
    conf = {**SIZES, "exit_layers": [1, 2, 4], "chunk_range": [2, 6]}
    settings_ = {"frontend": "kaldi_fbank", "normalize": None, "encoder_conf": conf, **changes}
    made = tiny.model(**{**settings_, "encoder": "early_exit_fast_conformer"})
    with pytest.raises(UserError, match=message) as raised:
        tiny.asr(made).stream(*words)
    assert "\n" not in str(raised.value)


def test_other_encoders_and_exports_refuse() -> None:
    asr = tiny.asr(tiny.model())
    with pytest.raises(UserError, match="was not trained for chunks"):
        asr.stream()
    asr.session = object()  # ONNX Runtime's has no torch model
    with pytest.raises(UserError, match="engine torch"):
        asr.stream()


def test_from_python() -> None:
    stream = tiny.asr(model()).stream(chunk_ms=160)
    texts = [stream.feed(piece).text for piece in np.array_split(speech(RATE), 10)]
    assert texts[0] == "" and texts[-1].startswith(texts[5][:1]) and len(set(texts)) > 2
    (final,) = stream.finish().finals
    assert final.text and final.recognition.exit_layer == 4


def test_what_is_no_stream_and_no_sound_is_one_line() -> None:
    asr, samples = EarlyExitASR(TorchSession(model(), RATE), RATE), speech(RATE)
    words: tuple[dict[str, Any], ...] = ({"chunk_ms": "320"}, {"chunk_ms": float("nan")}, {"chunk_ms": None}, {"endpoint": 0.5})
    for wrong in words:
        with pytest.raises(UsageError, match="a stream of chunk_ms"):
            asr.stream(**wrong)
    masked = np.ma.masked_array(samples, mask=samples > 0)  # what is masked would be heard
    for hear in (asr.stream().feed, lambda array: asr.transcribe(array, RATE), lambda array: asr.recognise([array])):
        with pytest.raises(UserError, match="not MaskedArray"):
            hear(masked)
    with pytest.raises(UserError, match="a batch is a list of utterances"):
        asr.recognise(None)  # type: ignore[arg-type]
