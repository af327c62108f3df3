"""Formatted and speed-perturbed audio: exact samples, lengths and names, at every number of processes."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import soundfile

from espnet_ee.data.audio import read_int16, stretch
from espnet_ee.data.datadir import validate_data_dir
from espnet_ee.data.features import extract_features
from espnet_ee.data.format_audio import format_audio
from espnet_ee.data.length_filter import filter_lengths
from espnet_ee.data.speed import check_factors, perturb_speed
from espnet_ee.errors import UsageError, UserError
from espnet_ee.kaldi import read_scp, write_scp

TreeBytes = Callable[[Path], dict[str, bytes]]


def test_format_keeps_samples_bit_by_bit(data_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "dump" / "set"
    assert format_audio(data_dir, out, 16000).utterances == 3
    data = validate_data_dir(out, "raw")
    assert data.tables["utt2num_samples"] == {"a-1": "16000", "a-2": "8000", "b-1": "4000"}
    assert data.tables["wav.scp"]["a-1"] == f"{out}/data/a/a-1.flac"
    for utt_id, path in data.tables["wav.scp"].items():
        assert soundfile.info(path).subtype == "PCM_16"
        assert (read_int16(path)[0] == read_int16(tmp_path / f"{utt_id}.wav")[0]).all()


def test_format_resamples(data_dir: Path, tmp_path: Path) -> None:
    format_audio(data_dir, tmp_path / "dump", 8000)
    assert read_scp(tmp_path / "dump" / "utt2num_samples")["a-2"] == "4000"
    assert soundfile.info(tmp_path / "dump" / "data" / "a" / "a-2.flac").samplerate == 8000


@pytest.mark.process
def test_format_is_the_same_for_any_number_of_processes_and_every_time(
    data_dir: Path, tmp_path: Path, tree_bytes: TreeBytes
) -> None:
    format_audio(data_dir, tmp_path / "dump", 8000, nj=1)
    first = tree_bytes(tmp_path / "dump")
    format_audio(data_dir, tmp_path / "dump", 8000, nj=2)
    assert tree_bytes(tmp_path / "dump") == first


def test_broken_audio_leaves_the_old_dump(data_dir: Path, tmp_path: Path, tree_bytes: TreeBytes) -> None:
    format_audio(data_dir, tmp_path / "dump", 16000)
    before = tree_bytes(tmp_path / "dump")
    (tmp_path / "a-2.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match=r"a-2\.wav: not readable"):
        format_audio(data_dir, tmp_path / "dump", 16000)
    assert tree_bytes(tmp_path / "dump") == before


def test_perturbed_names_and_lengths(data_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "data" / "set_sp"
    assert perturb_speed(data_dir, out, ["0.9", "1.0", "1.1"], tmp_path / "audio").utterances == 9
    data = validate_data_dir(out)
    assert data.utt_ids == ["a-1", "a-2", "b-1", *(f"sp{f}-{u}" for f in ("0.9", "1.1") for u in ("a-1", "a-2", "b-1"))]
    assert data.tables["utt2spk"]["sp0.9-b-1"] == "sp0.9-b"
    assert data.tables["text"]["sp1.1-a-1"] == "GO ON"
    assert data.tables["wav.scp"]["a-1"] == str(tmp_path / "a-1.wav")
    lengths = {name: soundfile.info(path).frames for name, path in data.tables["wav.scp"].items()}
    assert (lengths["sp0.9-a-1"], lengths["a-1"], lengths["sp1.1-a-1"]) == (17778, 16000, 14546)
    samples = read_int16(tmp_path / "b-1.wav")[0]
    assert (read_int16(data.tables["wav.scp"]["sp0.9-b-1"])[0] == stretch(samples, Fraction(10, 9))).all()


@pytest.mark.process
def test_perturbing_is_the_same_for_any_number_of_processes(data_dir: Path, tmp_path: Path, tree_bytes: TreeBytes) -> None:
    perturb_speed(data_dir, tmp_path / "sp", ["0.9"], tmp_path / "audio", nj=1)
    first = tree_bytes(tmp_path / "audio")
    perturb_speed(data_dir, tmp_path / "sp", ["0.9"], tmp_path / "audio", nj=2)
    assert tree_bytes(tmp_path / "audio") == first


def test_a_broken_utterance_goes_at_every_speed_if_it_may(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "a-2.wav").write_bytes(b"RIFF")
    out, audio = tmp_path / "sp", tmp_path / "audio"
    with pytest.raises(UserError, match=r"a-2\.wav: not readable"):
        perturb_speed(data_dir, out, ["0.9", "1.0", "1.1"], audio)
    with pytest.raises(UserError, match="1 of 3 utterances are broken, more than 1 %"):
        perturb_speed(data_dir, out, ["0.9", "1.0", "1.1"], audio, max_skipped=1)
    assert not out.exists() and not audio.exists()
    made = perturb_speed(data_dir, out, ["0.9", "1.0", "1.1"], audio, max_skipped=50)
    assert made.utterances == 6 and list(read_scp(out / "skipped")) == ["a-2"]
    assert validate_data_dir(out).utt_ids == ["a-1", "b-1", "sp0.9-a-1", "sp0.9-b-1", "sp1.1-a-1", "sp1.1-b-1"]
    assert not list(audio.rglob("*a-2*"))


def test_perturbing_never_replaces_another_folder(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(UserError, match="home: exists"):
        perturb_speed(data_dir, tmp_path / "sp", ["0.9"], tmp_path / "home")
    assert not (tmp_path / "sp").exists()


def test_two_utterances_never_become_one(data_dir: Path, tmp_path: Path) -> None:
    for name in ("wav.scp", "text", "utt2spk"):
        write_scp(data_dir / name, {"sp0.9-a-1": read_scp(data_dir / name)["a-1"], **read_scp(data_dir / name)})
    with pytest.raises(UserError, match=r"wav\.scp:4: 'sp0\.9-a-1' at speed 1\.0 would be 'sp0\.9-a-1', as another is"):
        perturb_speed(data_dir, tmp_path / "sp", ["0.9", "1.0"], tmp_path / "audio")
    assert not (tmp_path / "audio").exists()


def test_perturbing_never_deletes_its_own_source(data_dir: Path, tmp_path: Path, tree_bytes: TreeBytes) -> None:
    perturb_speed(data_dir, tmp_path / "b", ["1.0", "0.9"], tmp_path / "audio")
    before = tree_bytes(tmp_path)
    with pytest.raises(UsageError, match=r"audio: is to be replaced but holds .*sp0\.9-a-1\.flac, which .*b/wav\.scp:4"):
        perturb_speed(tmp_path / "b", tmp_path / "c", ["1.0", "1.2"], tmp_path / "audio")
    assert tree_bytes(tmp_path) == before


def test_perturbing_never_replaces_a_file_that_was_put_into_its_audio(data_dir: Path, tmp_path: Path) -> None:
    perturb_speed(data_dir, tmp_path / "new", ["0.9"], tmp_path / "audio")
    (tmp_path / "audio" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="audio/notes.txt: was put into"):
        perturb_speed(data_dir, tmp_path / "new", ["0.8"], tmp_path / "audio")
    assert (tmp_path / "audio" / "notes.txt").read_text() == "mine"


def test_no_command_replaces_a_folder_that_holds_its_source(data_dir: Path, tmp_path: Path, tree_bytes: TreeBytes) -> None:
    dump, fewer = tmp_path / "dump", tmp_path / "fewer"
    format_audio(data_dir, dump, 16000)
    filter_lengths(dump, fewer, 0, 0.7)
    before = tree_bytes(tmp_path)
    commands: tuple[Callable[[], object], ...] = (
        lambda: format_audio(fewer, dump, 16000),
        lambda: filter_lengths(fewer, dump, 0, 0.3),
        lambda: extract_features(fewer, dump),
        lambda: perturb_speed(fewer, dump, ["0.9"], tmp_path / "audio"),
    )
    for command in commands:
        with pytest.raises(UsageError, match=r"dump: is to be replaced but holds .*fewer/wav\.scp:1 needs"):
            command()
    assert tree_bytes(tmp_path) == before


@pytest.mark.parametrize("factors", ["x", "0", "-1", "9", "nan", "1/2", "0.9 0.90", "0.91234"])
def test_impossible_factors_are_refused(factors: str) -> None:
    with pytest.raises(UsageError, match="--factors"):
        check_factors(factors.split())
