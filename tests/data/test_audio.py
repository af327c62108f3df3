"""Audio comes in bit by bit, and a broken file is named."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from espnet_ee.data.audio import (
    FULL_SCALE,
    count_samples,
    float_samples,
    read_any,
    read_audio,
    read_blocks,
    read_int16,
    resample,
    stretch,
    to_int16,
    write_flac,
)
from espnet_ee.data.polyphase import change_length
from espnet_ee.data.recording import open_recording
from espnet_ee.errors import UserError

Tone = Callable[[int], np.ndarray]
RATE = 16000


def save(path: Path, samples: np.ndarray, write_sphere: Callable[..., None]) -> Path:
    """Writes int16 samples in the format that the suffix tells."""
    if path.suffix == ".sph":
        write_sphere(path, samples)
    else:
        soundfile.write(path, samples, RATE, subtype="PCM_16")
    return path


CODECS = {
    "a.mp3": ("MP3", "MPEG_LAYER_III"),
    "a.opus": ("OGG", "OPUS"),
    "a.ogg": ("OGG", "VORBIS"),
    "a.flac": ("FLAC", "PCM_16"),
}


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("size", [100, 4096])
def test_samples_do_not_depend_on_how_much_is_read_at_once(name: str, size: int, tmp_path: Path) -> None:
    rate, (kind, subtype) = 24000, CODECS[name]
    noise = np.random.default_rng(0).normal(0, 0.1, (2 * rate, 1))
    soundfile.write(tmp_path / name, noise, rate, format=kind, subtype=subtype)
    whole, _ = soundfile.read(tmp_path / name, dtype="float32", always_2d=True)
    blocks = list(read_blocks(tmp_path / name, size))
    assert {len(block) for block in blocks[:-1]} == {size} and 0 < len(blocks[-1]) <= size
    np.testing.assert_allclose(np.concatenate(blocks), whole, rtol=0, atol=1e-6)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".sph"])
def test_sixteen_bits_come_back_exactly(suffix: str, tmp_path: Path, tone: Tone, write_sphere: Callable[..., None]) -> None:
    samples = tone(1000)
    samples[:2] = (-32768, 32767)
    path = save(tmp_path / f"x{suffix}", samples, write_sphere)
    integers, rate = read_int16(path)
    floats, _ = read_audio(path)
    assert rate == RATE and count_samples(path) == (1000, RATE)
    assert integers.dtype == np.int16 and (integers == samples).all()
    assert floats.dtype == np.float32 and (floats == samples / np.float32(32768)).all()


def test_flac_round_trip(tmp_path: Path, tone: Tone) -> None:
    write_flac(tmp_path / "new" / "x.flac", tone(777), 8000)
    samples, rate = read_int16(tmp_path / "new" / "x.flac")
    assert rate == 8000 and (samples == tone(777)).all()


def test_unwritable_place_is_named(tmp_path: Path, tone: Tone) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"x\.flac: cannot be written"):
        write_flac(tmp_path / "file" / "x.flac", tone(9), RATE)


def test_a_full_disk_is_an_error_and_no_short_file(
    tmp_path: Path, tone: Tone, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    with full_disk(92160), pytest.raises(UserError, match=r"x\.flac: cannot be written \(.*; check space"):
        write_flac(tmp_path / "x.flac", tone(48000), RATE)


def test_flac_bytes_are_those_of_libsndfile(tmp_path: Path, tone: Tone) -> None:
    write_flac(tmp_path / "x.flac", tone(20000), RATE)
    soundfile.write(tmp_path / "y.flac", tone(20000), RATE, subtype="PCM_16", format="FLAC")
    assert (tmp_path / "x.flac").read_bytes() == (tmp_path / "y.flac").read_bytes()


def test_other_depths_are_rounded_and_clipped(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.array([1.5, -1.5, 0.6 / 32768, 0.4 / 32768]), RATE, subtype="FLOAT")
    assert read_int16(tmp_path / "x.wav")[0].tolist() == [32767, -32768, 1, 0]


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".sph"])
def test_file_cut_short_is_refused(suffix: str, tmp_path: Path, tone: Tone, write_sphere: Callable[..., None]) -> None:
    path = save(tmp_path / f"x{suffix}", tone(5000), write_sphere)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(UserError, match=f"x{suffix}: (cut short|cannot be read to its end).*get the file again"):
        read_audio(path)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000], ids=["ffmpeg", "sox"])
def test_wav_of_unknown_length_is_read(size: int, tmp_path: Path, tone: Tone) -> None:
    """A program that writes into a pipe cannot fill in the length: that is no broken promise."""
    path = tmp_path / "x.wav"
    soundfile.write(path, tone(100), RATE, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    start = content.index(b"data") + 4
    content[start : start + 4] = size.to_bytes(4, "little")
    path.write_bytes(content)
    assert (read_int16(path)[0] == tone(100)).all()


def test_flac_of_unknown_length_is_named(tmp_path: Path, tone: Tone) -> None:
    path = tmp_path / "x.flac"
    write_flac(path, tone(9000), RATE)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of STREAMINFO that count the samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    for read in (count_samples, read_int16, read_audio):
        with pytest.raises(UserError, match="x.flac: its header does not tell its length"):
            read(path)


def test_broken_files_are_named(tmp_path: Path, tone: Tone) -> None:
    (tmp_path / "nothing.wav").touch()
    soundfile.write(tmp_path / "empty.wav", tone(0), RATE)
    soundfile.write(tmp_path / "stereo.wav", np.zeros((9, 2)), RATE)
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan]), RATE, subtype="FLOAT")
    messages = {"nothing": "is empty", "empty": "no samples", "stereo": "2 channels", "nan": "not finite"}
    for name, message in {**messages, "absent": "no such audio file", "long" * 999: "no such audio file"}.items():
        with pytest.raises(UserError, match=f"{name}.wav: .*{message}"):
            read_audio(tmp_path / f"{name}.wav")


@pytest.mark.parametrize(("rate", "length"), [(8000, 2002), (44100, 364), (48000, 334)])
def test_resampling_keeps_time_and_level(rate: int, length: int) -> None:
    samples = to_int16(10000 * np.sin(2 * np.pi * 440 * np.arange(1001) / rate))
    result = resample(samples, rate, RATE)
    expected = 10000 * np.sin(2 * np.pi * 440 * np.arange(length) / RATE)
    assert len(result) == length and result.dtype == np.int16
    assert np.abs(result - expected)[50:-50].max() < 60


@pytest.mark.parametrize("ratio", ["2", "1/3", "160/441", "640/441", "10/9", "10/11", "2000/5507", "16000/16001"])
def test_resampling_is_scipys(ratio: str) -> None:
    """To the last bit of 16: corpora made before, and models trained on them, stay what they are."""
    exact = Fraction(ratio)
    for length in (1, 2, 30, 4001):
        samples = np.random.default_rng(length).integers(-20000, 20000, length).astype(np.int16)
        expected = resample_poly(samples.astype(np.float64), exact.numerator, exact.denominator)
        np.testing.assert_allclose(change_length(samples, exact), expected, atol=1e-7)
        assert (stretch(samples, exact) == to_int16(expected)).all()


def test_stretch_by_one_is_the_identity(tone: Tone) -> None:
    assert (stretch(tone(10), Fraction(1)) == tone(10)).all()


def test_stretch_clips() -> None:
    square = np.repeat(np.array([32767, -32768] * 20, dtype=np.int16), 40)
    result = stretch(square, Fraction(10, 9))
    assert result.max() == 32767 and result.min() == -32768


def test_any_file_of_the_models_kind_is_read_as_it_is(tmp_path: Path, tone: Tone) -> None:
    write_flac(tmp_path / "x.flac", tone(777), RATE)
    samples, note = read_any(tmp_path / "x.flac", RATE)
    assert note == "" and samples.dtype == np.float32 and (samples == read_audio(tmp_path / "x.flac")[0]).all()


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_rate_and_channels(rate: int, channels: int, tmp_path: Path, tone: Tone) -> None:
    """Mono is what the recipes' stage 3 makes of it; of several equal channels the mean is any of them."""
    soundfile.write(tmp_path / "x.wav", np.tile(tone(rate)[:, None], channels), rate, subtype="PCM_16")
    samples, note = read_any(tmp_path / "x.wav", RATE)
    assert samples.dtype == np.float32
    assert (samples * FULL_SCALE == resample(tone(rate), rate, RATE)).all()
    assert (f"{rate} Hz" in note) == (rate != RATE) and (f"{channels} channels" in note) == (channels > 1)


def test_channels_are_mixed(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.array([[1000, -1000], [3000, 1000]], np.int16), RATE)
    assert (read_any(tmp_path / "x.wav", RATE)[0] * FULL_SCALE).tolist() == [0.0, 2000.0]


@pytest.mark.parametrize("share", [1.0, 0.95])
def test_channels_that_cancel_each_other_are_not_taken_for_silence(share: float, tmp_path: Path, tone: Tone) -> None:
    left = tone(4000)
    soundfile.write(tmp_path / "x.wav", np.stack([left, (-share * left).astype(np.int16)], axis=1), RATE, subtype="PCM_16")
    samples, note = read_any(tmp_path / "x.wav", RATE)
    assert (samples * FULL_SCALE == left).all() and "opposite phase" in note
    np.testing.assert_array_equal(float_samples(np.stack([left, -left], axis=1), RATE, RATE), samples)
    soundfile.write(tmp_path / "silence.wav", np.zeros((100, 2)), RATE)
    assert "mixed down" in read_any(tmp_path / "silence.wav", RATE)[1]


@pytest.mark.parametrize("name", ["x.ogg", "x.mp3", "x.aiff", "x.au", "x.w64", "x.caf", "x.wav"])
def test_whatever_libsndfile_reads(name: str, tmp_path: Path) -> None:
    wave = 0.5 * np.sin(np.arange(48000) / 20)
    soundfile.write(tmp_path / name, np.stack([wave, wave], axis=1), 48000)
    samples, _ = read_any(tmp_path / name, RATE)
    assert abs(len(samples) - RATE) < 1200  # an MP3 has its padding
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("subtype", sorted(set(soundfile.available_subtypes("WAV")) - {"MPEG_LAYER_III"}))
def test_every_codec_of_a_wav_is_read_whole_and_in_blocks(subtype: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(np.arange(40000) / 20), RATE, subtype=subtype)
    samples, _ = read_any(tmp_path / "a.wav", RATE)
    assert len(samples) == count_samples(tmp_path / "a.wav")[0] >= 40000
    assert np.array_equal(samples, np.concatenate(list(read_blocks(tmp_path / "a.wav", 3000)))[:, 0])


def test_a_rate_that_no_sound_has_is_one_line(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(100), 2**31 - 1)
    for read in (lambda path: read_any(path, RATE), lambda path: open_recording(path, RATE, 20)):
        with pytest.raises(UserError, match="a.wav: 2147483647 Hz cannot become 16000 Hz"):
            read(tmp_path / "a.wav")


def test_no_audio_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_text("no audio")
    soundfile.write(tmp_path / "nan.wav", np.full((9, 2), np.nan), RATE, subtype="FLOAT")
    for name in ("x.wav", "nan.wav", "nowhere.wav", "."):
        with pytest.raises(UserError, match=name):
            read_any(tmp_path / name, RATE)


def test_a_name_that_is_no_utf8_is_one_line(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/bad\xff.wav"
    soundfile.write(tmp_path / "a.wav", np.zeros(100, np.int16), RATE)
    os.rename(tmp_path / "a.wav", path)
    with pytest.raises(UserError, match=r"bad\\udcff.wav.*rename"):
        read_audio(os.fsdecode(path))


def test_audio_in_an_archive_is_told_where_it_can_be_read():
    with pytest.raises(UserError, match=r"data_wav.ark:42: audio inside an archive .* --audio_format flac"):
        read_audio("data_wav.ark:42")


def test_whole_numbers_kept_as_floats_are_refused_wherever_audio_is_read(tmp_path: Path, tone: Tone) -> None:
    soundfile.write(tmp_path / "x.wav", tone(1000).astype(np.float32), RATE, subtype="FLOAT")
    readers = (read_audio, read_int16, lambda path: read_any(path, RATE), lambda path: list(read_blocks(path, 300)))
    for read in readers:
        with pytest.raises(UserError, match=r"x\.wav: floats up to \d+ are not in \[-1, 1\]; divide them by their full scale"):
            read(tmp_path / "x.wav")
    soundfile.write(tmp_path / "x.wav", tone(1000) / 32768 * 1.5, RATE, subtype="FLOAT")  # a master's overshoot
    for read in readers:
        read(tmp_path / "x.wav")
    assert read_any(tmp_path / "x.wav", RATE)[1] == ""
