"""Stages 1 to 4 notice what changed outside their options: the corpus' place, segments, deleted audio, deleted logs."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from espnet_ee.kaldi import read_scp, write_scp

pytestmark = pytest.mark.process

RATE = 16000


def readers(root: Path) -> Path:
    """A part of LibriSpeech with three readers; stage 1 only looks whether the audio is there."""
    for reader in ("7", "19", "83"):
        folder = root / "LibriSpeech" / "train-clean-5" / reader / "1"
        folder.mkdir(parents=True)
        (folder / f"{reader}-1-0000.flac").touch()
        (folder / f"{reader}-1.trans.txt").write_text(f"{reader}-1-0000 GO\n")
    return root


def test_stage_1_follows_the_corpus_that_db_sh_or_the_environment_names(bash, root: Path, tmp_path: Path) -> None:
    one, other = readers(tmp_path / "one"), readers(tmp_path / "other")
    script = str(root / "egs" / "librispeech" / "asr1" / "run.sh")
    name = "train_clean_5"
    options = {
        "stop_stage": "1",
        "train_set": name,
        "valid_set": name,
        "test_sets": name,
        "speed_perturb": "stored",
        "datadir": f"{tmp_path}/data",
    }

    def stage_1(folder: Path | None, *more: str) -> tuple[str, str]:
        arguments = [*(f"--{option}={value}" for option, value in options.items()), *more]
        result = bash(script, *arguments, LIBRISPEECH=str(folder or ""), AN4="elsewhere")
        assert result.returncode == 0, result.stderr
        assert "3 utterances; warning: the published set has 1519" in result.stdout
        return result.stdout, next(iter(read_scp(tmp_path / "data" / name / "wav.scp").values()))

    assert stage_1(one)[1].startswith(str(one))
    said, audio = stage_1(other)
    assert "changed, done again" in said and audio.startswith(str(other))
    for folder in (other, None):  # None: nobody says that it is elsewhere now
        said, audio = stage_1(folder)
        assert "done, skipped" in said and audio.startswith(str(other))
    for written in (f"{other}/", f"{other}/../other"):
        said, audio = stage_1(None, f"--librispeech_root={written}", "--download_url=another", "--nj=3")
        assert "done, skipped" in said


@pytest.fixture
def run_stages(bash, root: Path, tmp_path: Path):
    """Stages 2 to 4 of a training and a development set cut out of one recording each; returns what was said."""
    for name, count in (("train", 3), ("dev", 1)):
        samples = np.random.default_rng(count).integers(-9000, 9000, 4 * RATE).astype(np.int16)
        soundfile.write(tmp_path / f"{name}.wav", samples, RATE)
        ids = [f"{name}-{number}" for number in range(count)]
        folder = tmp_path / "data" / name
        write_scp(folder / "wav.scp", {name: str(tmp_path / f"{name}.wav")})
        write_scp(folder / "segments", {utt_id: f"{name} {number} {number + 1}" for number, utt_id in enumerate(ids)})
        write_scp(folder / "text", dict.fromkeys(ids, "GO"))
        write_scp(folder / "utt2spk", dict.fromkeys(ids, name))

    def run(*options: str) -> str:
        result = bash(
            str(root / "egs" / "mini" / "asr1" / "run.sh"),
            *("--stage", "2", "--stop_stage", "4", "--nj", "1", "--test_sets", "dev"),
            *("--datadir", f"{tmp_path}/data", "--dumpdir", f"{tmp_path}/dump", *options),
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


def test_without_a_script_stage_1_looks_through_what_is_there(run_stages, bash, template, root: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "egs" / "mine" / "asr1"
    recipe.mkdir(parents=True)
    for name in ("asr_ee.sh", "cmd.sh", "path.sh", "utils"):
        (recipe / name).symlink_to(template / name)
    options = ("--train_set", "train", "--valid_set", "dev", "--test_sets", "dev", "--datadir", f"{tmp_path}/data")

    def stage_1() -> tuple[int, str]:
        result = bash("asr_ee.sh", "--stop_stage", "1", *options, cwd=recipe, PYTHONPATH=str(root))
        return result.returncode, result.stdout + result.stderr

    status, said = stage_1()
    assert status == 0 and "train: 3 utterances" in said and "dev: 1 utterances" in said
    (tmp_path / "data" / "dev" / "text").unlink()
    status, said = stage_1()
    assert status == 1 and "dev/text" in said


def test_changed_segments_are_cut_again(run_stages, tmp_path: Path) -> None:
    run_stages()
    counts = tmp_path / "dump" / "raw" / "train" / "utt2num_samples"
    assert read_scp(counts)["train-2"] == "16000"
    segments = tmp_path / "data" / "train" / "segments"
    segments.write_text(segments.read_text().replace("train 2 3", "train 2 3.5"))
    run_stages()
    assert read_scp(counts)["train-2"] == "24000"


def test_what_sounds_is_known_wherever_it_lies(run_stages, tmp_path: Path) -> None:
    run_stages()
    content = tmp_path / "dump" / "raw" / "train" / ".content"
    before = content.read_text()
    moved = tmp_path / "elsewhere.wav"
    (tmp_path / "train.wav").rename(moved)
    write_scp(tmp_path / "data" / "train" / "wav.scp", {"train": str(moved)})
    assert "stage 3: raw: train: options or inputs changed, done again" in run_stages()
    assert content.read_text() == before
    soundfile.write(moved, np.zeros(4 * RATE, np.int16), RATE)
    (tmp_path / "dump" / "raw" / "org" / "train" / ".done").unlink()
    run_stages()
    assert content.read_text() != before


def test_deleted_audio_of_other_speeds_and_deleted_logs(run_stages, tmp_path: Path) -> None:
    speeds = ("--speed_perturb_factors", "0.9 1.0")
    run_stages(*speeds)
    shutil.rmtree(tmp_path / "dump" / "log")
    assert run_stages(*speeds).count("done, skipped") == 4
    shutil.rmtree(tmp_path / "dump")
    assert "stage 2: speed perturbation by 0.9 1.0; log: " in run_stages(*speeds)
    assert len(read_scp(tmp_path / "dump" / "raw" / "train_sp" / "text")) == 6


def test_broken_training_audio_may_be_skipped_in_stage_2(run_stages, tmp_path: Path) -> None:
    segments = tmp_path / "data" / "train" / "segments"
    segments.write_text(segments.read_text().replace("train 2 3", "train 2 9"))
    said = run_stages("--speed_perturb_factors", "0.9 1.0", "--max_skipped", "40")
    assert f"stage 2: train_sp: 1 utterances skipped, see {tmp_path}/data/train_sp/skipped" in said
    assert len(read_scp(tmp_path / "dump" / "raw" / "train_sp" / "text")) == 4


def test_the_training_gets_no_empty_transcript_of_the_development_set(run_stages, bash, template, tmp_path: Path) -> None:
    raw = tmp_path / "dump" / "raw"
    script = f". {template}/utils/stages_train.sh\ndata_feats={raw} valid_set=dev\ntraining_valid_dir"
    run_stages()
    assert bash(text=script).stdout.strip() == str(raw / "dev") and not (raw / "with_text").exists()
    wordless = {"dev-0": "GO", "dev-1": ""}
    folder = tmp_path / "data" / "dev"
    write_scp(folder / "segments", {"dev-0": "dev 0 1", "dev-1": "dev 1 1.05"})
    write_scp(folder / "text", wordless)
    write_scp(folder / "utt2spk", dict.fromkeys(wordless, "dev"))
    for times in (1, 0):
        assert run_stages().count("stage 4: dev without empty transcripts, for the training; log: ") == times
    assert read_scp(raw / "dev" / "text", allow_empty=True) == wordless
    assert bash(text=script).stdout.strip() == str(raw / "with_text" / "dev")
    assert read_scp(raw / "with_text" / "dev" / "text") == {"dev-0": "GO"}
    assert list(read_scp(raw / "with_text" / "dev" / "wav.scp")) == ["dev-0"]


def test_what_the_sets_share_is_said_every_time_and_a_set_named_twice_is_refused(
    run_stages, bash, root: Path, tmp_path: Path
) -> None:
    write_scp(tmp_path / "data/dev/wav.scp", {"dev": str(tmp_path / "train.wav")})
    run_stages()
    for _ in range(2):
        said = run_stages("--stop_stage", "5")
        assert "warning: dev: 1 of its 1 utterances ARE IN train, TOO (1 by sound; the first: dev-0)" in said
    result = bash(str(root / "egs" / "mini" / "asr1" / "run.sh"), "--test_sets", "dev test dev")
    assert (result.returncode, result.stdout) == (2, "")
    assert "option '--test_sets': 'dev' is named twice" in result.stderr


def test_stored_features_are_those_of_the_configurations_frontend(run_stages, bash, root: Path, tmp_path: Path) -> None:
    stored = ("--feats_type", "extracted")
    run_stages(*stored, "--stop_stage", "5")
    train = tmp_path / "dump" / "extracted" / "train"
    assert (train / "feats_dim").read_text() == "80\n" and "kaldi_fbank" in (train / "frontend.yaml").read_text()
    places = ("--datadir", f"{tmp_path}/data", "--dumpdir", f"{tmp_path}/dump", "--expdir", f"{tmp_path}/exp")
    words = (*stored, *places, "--stage", "10", "--stop_stage", "10", "--asr_config", "conf/train_ee_conformer.yaml")
    result = bash(str(root / "egs/mini/asr1/run.sh"), *words)
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert "of another frontend (frontend.yaml) than that of conf/train_ee_conformer.yaml; run stage 3 first" in result.stderr
