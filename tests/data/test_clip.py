"""Segments: rounded to samples, cut out exactly, and the same words to the last sample whichever way they are read."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from espnet_ee.data.audio import read_int16
from espnet_ee.data.clip import Span, to_samples
from espnet_ee.data.datadir import read_data_dir, validate_data_dir
from espnet_ee.data.features import extract_features
from espnet_ee.data.format_audio import format_audio
from espnet_ee.data.inputs import read_inputs
from espnet_ee.data.length_filter import filter_lengths
from espnet_ee.data.speed import perturb_speed
from espnet_ee.errors import UserError
from espnet_ee.kaldi import write_scp

RATE = 16000
TIMES = {"r-1": ("0.10", "0.57"), "r-2": ("0.57", "1.0000625"), "s-1": ("0", "0.5")}


@pytest.fixture
def segmented(tmp_path: Path, tone) -> Path:
    """Three segments of two recordings of 1.25 and 0.5 s."""
    for name, count in (("r", 20000), ("s", 8000)):
        soundfile.write(tmp_path / f"{name}.flac", tone(count), RATE, subtype="PCM_16")
    folder = tmp_path / "data" / "set"
    write_scp(folder / "wav.scp", {name: str(tmp_path / f"{name}.flac") for name in "rs"})
    write_scp(folder / "segments", {utt: f"{utt[0]} {start} {end}" for utt, (start, end) in TIMES.items()})
    write_scp(folder / "text", dict.fromkeys(TIMES, "GO"))
    write_scp(folder / "utt2spk", {utt: utt[0] for utt in TIMES})
    return folder


@given(st.integers(0, 10**6), st.sampled_from([8000, 16000, 44100, 48000]))
def test_times_are_rounded_never_truncated(centiseconds: int, rate: int) -> None:
    exact = Fraction(centiseconds, 100) * rate
    assert abs(to_samples(Decimal(centiseconds) / 100, rate) - exact) <= Fraction(1, 2)


def test_segments_are_cut_out_exactly(segmented: Path, tmp_path: Path) -> None:
    assert format_audio(segmented, tmp_path / "dump", RATE).utterances == 3
    data = validate_data_dir(tmp_path / "dump", "raw")
    assert data.tables["utt2num_samples"] == {"r-1": "7520", "r-2": "6881", "s-1": "8000"}
    recording = read_int16(tmp_path / "r.flac")[0]
    for utt, first, last in (("r-1", 1600, 9120), ("r-2", 9120, 16001)):
        np.testing.assert_array_equal(read_int16(data.tables["wav.scp"][utt])[0], recording[first:last])
    assert "segments" not in data.tables


def test_features_of_segments_are_those_of_the_cut_files(segmented: Path, tmp_path: Path) -> None:
    import kaldiio

    extract_features(segmented, tmp_path / "direct")
    format_audio(segmented, tmp_path / "raw", RATE)
    extract_features(tmp_path / "raw", tmp_path / "over_files")
    direct, over_files = (kaldiio.load_scp(str(tmp_path / name / "feats.scp")) for name in ("direct", "over_files"))
    assert sorted(direct) == sorted(over_files) == sorted(TIMES)
    assert all((direct[utt] == over_files[utt]).all() for utt in TIMES)


def test_perturbed_segments_become_files(segmented: Path, tmp_path: Path) -> None:
    assert perturb_speed(segmented, tmp_path / "sp", ["1.0", "1.1"], tmp_path / "audio").utterances == 6
    data = validate_data_dir(tmp_path / "sp")
    counts = {utt: soundfile.info(path).frames for utt, path in data.tables["wav.scp"].items()}
    assert (counts["r-1"], counts["sp1.1-r-1"]) == (7520, 6837)


def test_filtering_keeps_the_recordings_that_are_used(segmented: Path, tmp_path: Path) -> None:
    survivors = filter_lengths(segmented, tmp_path / "kept", 0.1, 0.48)
    assert survivors.kept == ["r-1", "r-2"] and survivors.dropped["too long"] == ["s-1"]
    assert list(validate_data_dir(tmp_path / "kept").tables["wav.scp"]) == ["r"]


def test_a_small_overshoot_is_cut_at_the_end(tmp_path: Path) -> None:
    span = Span(Decimal("1"), Decimal("2.3"))
    assert span.samples(100, 200, "x") == (100, 200)
    with pytest.raises(UserError, match="beyond the end"):
        span.samples(100, 179, "x")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("r 0.5", r"segments:2: not 'RECORDING START END'"),
        ("r 0.5 0.1", r"segments:2: the times 0\.5 and 0\.1 are reversed"),
        ("r 0.5 0.5", r"segments:2: the times .* reversed"),
        ("r -0.5 0.5", r"segments:2: the time -0\.5 is negative"),
        ("r nan 0.5", r"segments:2: 'nan' is not a time"),
        ("x 0 0.5", r"segments:2: .*'x' is not in .*wav\.scp"),
        ("r 0 1e999999", r"segments:2: the time 1e999999 is longer than any recording"),
        ("r 0 9.5", r"segments:2: .*beyond the end"),
    ],
)
def test_broken_segments_are_named(line: str, message: str, segmented: Path) -> None:
    lines = (segmented / "segments").read_text().splitlines()
    (segmented / "segments").write_text("\n".join([lines[0], f"r-2 {line}", lines[2], ""]))
    with pytest.raises(UserError, match=message):
        validate_data_dir(segmented)


def test_a_recording_without_segments_is_named(segmented: Path) -> None:
    with (segmented / "wav.scp").open("a") as stream:
        stream.write("t /nowhere.flac\n")
    with pytest.raises(UserError, match=r"wav\.scp:3: 't' is not in .*segments"):
        read_data_dir(segmented)


def test_segments_with_features(segmented: Path, tmp_path: Path) -> None:
    """Kaldi keeps segments beside feats.scp: its features are of utterances, its wav.scp is of recordings."""
    extract_features(segmented, tmp_path / "feats")
    for name in ("feats.scp", "utt2num_frames", "frontend.yaml"):
        (segmented / name).write_text((tmp_path / "feats" / name).read_text())
    assert validate_data_dir(segmented).utt_ids == sorted(TIMES)
    survivors = filter_lengths(segmented, tmp_path / "kept", 0.1, 0.48)
    kept = validate_data_dir(tmp_path / "kept")
    assert kept.utt_ids == survivors.kept == ["r-1", "r-2"]
    assert list(kept.tables["wav.scp"]) == ["r"] and list(kept.tables["segments"]) == kept.utt_ids
    (segmented / "wav.scp").unlink()  # Kaldi's copies of extracted sets have none
    assert validate_data_dir(segmented).utt_ids == sorted(TIMES)


def test_segments_are_decoded_as_the_files_that_are_cut_out_of_them(segmented: Path, tmp_path: Path) -> None:
    format_audio(segmented, tmp_path / "raw", RATE)
    cut, files = read_inputs(segmented, RATE), read_inputs(tmp_path / "raw", RATE)
    assert [(item.utt_id, item.seconds) for item in cut] == [(item.utt_id, item.seconds) for item in files]
    assert all((one.load() == other.load()).all() for one, other in zip(cut, files, strict=True))
