"""kill -9 at any moment of stages 1 to 5 and 10, then a rerun: the final files are those of a run that nobody disturbed.

And of stage 11: a training that was killed in mid-epoch goes on to the same losses.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.process
ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "egs" / "librispeech" / "asr1"
KILLS = 8
LEFT_OVERS = (".tmp", ".old", ".log", ".lock")
"""Temporary places of a killed run may stay (nothing reads them); logs hold times, locks who ran."""


def start(corpus: Path, folder: Path, **more: str) -> subprocess.Popen[bytes]:
    """The recipe's stages 1 to 5 (or others) with stored speeds, in a process group of its own."""
    options = {
        "librispeech_root": corpus, "train_set": "train_clean_5", "test_sets": "dev test", "hold_out": "4",
        "speed_perturb": "stored", "speed_perturb_factors": "0.9 1.0", "token_type": "bpe", "nbpe": "40", "nj": "1", "stop_stage": "5",
        "datadir": "data", "dumpdir": "dump", "expdir": "exp", **more,
    }  # fmt: skip
    # Relative paths in two folders, so that the tables of both runs name the same files.
    links = [(name, RECIPE / name) for name in ("asr_ee.sh", "cmd.sh", "path.sh", "db.sh", "utils", "local", "conf")]
    for name, target in links:
        if not (folder / name).exists():
            (folder / name).symlink_to(target)
    (folder / "run.sh").write_bytes((RECIPE / "run.sh").read_bytes())
    with (folder / "stdout").open("ab") as stdout:
        return subprocess.Popen(
            ["bash", "run.sh", *(f"--{name}={value}" for name, value in options.items())],
            cwd=folder,
            env={**os.environ, "ESPNET_EE_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def kill(process: subprocess.Popen[bytes]) -> bool:
    """Kills the whole group with SIGKILL; False if it was finished already."""
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return running


def final_files(folder: Path, tops: tuple[str, ...] = ("data", "dump")) -> dict[str, bytes]:
    files = {}
    for top in tops:
        for path in sorted((folder / top).rglob("*")):
            parts = path.relative_to(folder).parts
            if path.is_file() and not any(part.endswith(LEFT_OVERS) for part in parts):
                files["/".join(parts)] = path.read_bytes()
    return files


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus under the name of LibriSpeech's smallest part."""
    from espnet_ee.data.mini.make import make_corpus

    root = tmp_path_factory.mktemp("corpus")
    make_corpus(root, nj=1, utterances_per_speaker=1)
    (root / "LibriSpeech").mkdir()
    (root / "LibriSpeech" / "train-clean-5").symlink_to(root / "MiniSpeech" / "train")
    return root


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """Stages 1 to 5 undisturbed: the folder, and the seconds they took."""
    folder = tmp_path_factory.mktemp("whole")
    began = time.monotonic()
    assert start(corpus, folder).wait() == 0, (folder / "stdout").read_text()
    return folder, time.monotonic() - began


def test_kills_leave_no_trace(corpus: Path, whole: tuple[Path, float], tmp_path: Path) -> None:
    folder, seconds = whole
    wanted = final_files(folder)
    disturbed = tmp_path
    assert "data/token_list/bpe_unigram40/bpe.model" in wanted and len(wanted) > 50
    chance = random.Random(0)
    kills = 0
    while kills < KILLS:
        # Uniform over a whole run in the first kills; a rerun skips what is done, so later ones come soon.
        process = start(corpus, disturbed)
        time.sleep(chance.uniform(0.05, seconds * 0.35))
        if kill(process):
            kills += 1
        else:
            # A run came through: what was killed in it must not show, and the next round starts from nothing.
            assert process.returncode == 0, (disturbed / "stdout").read_text()[-3000:]
            assert final_files(disturbed) == wanted
            for top in ("data", "dump"):
                (disturbed / top).rename(disturbed / f"{top}.{kills}.tmp")
    assert start(corpus, disturbed).wait() == 0, (disturbed / "stdout").read_text()[-3000:]
    assert final_files(disturbed) == wanted


TINY_MODEL = {
    "encoder": "early_exit_conformer",
    "encoder_conf": {"output_size": 8, "attention_heads": 2, "linear_units": 8, "num_blocks": 2, "exit_layers": [1, 2]},
    "model": "early_exit",
    "model_conf": {"ctc_weight": 1.0},
    "frontend_conf": {"n_fft": 512, "hop_length": 160},
    "specaug": "specaug",
    "specaug_conf": {"apply_time_mask": True, "time_mask_width_range": [0, 20]},
    "optim": "adam",
    "batch_type": "numel",
    "batch_bins": 90000,  # an utterance or two: many steps, so that there is a middle of an epoch
    "max_epoch": 2,
    "log_interval": 1,
    "num_workers": 1,
    "num_att_plot": 0,
    "best_model_criterion": [["valid", "loss", "min"]],
    "keep_nbest_models": 1,
}


@pytest.fixture
def trainable(whole: tuple[Path, float], tmp_path: Path) -> Path:
    """A copy of the undisturbed stages 1 to 5, with a configuration to train."""
    folder = tmp_path / "trainable"
    shutil.copytree(whole[0], folder, symlinks=True)
    (folder / "train_tiny.yaml").write_text(yaml.safe_dump(TINY_MODEL), encoding="utf-8")
    return folder


def run_stage(corpus: Path, folder: Path, stage: int) -> subprocess.Popen[bytes]:
    return start(corpus, folder, stage=str(stage), stop_stage=str(stage), asr_config="train_tiny.yaml", ngpu="0")


def test_kills_in_stage_10_leave_no_trace(corpus: Path, trainable: Path) -> None:
    began = time.monotonic()
    assert run_stage(corpus, trainable, 10).wait() == 0, (trainable / "stdout").read_text()[-3000:]
    seconds = time.monotonic() - began
    wanted = final_files(trainable, ("exp",))
    assert any(name.endswith("train/feats_stats.npz") for name in wanted)
    (trainable / "exp").rename(trainable / "exp.tmp")
    chance = random.Random(1)
    kills = 0
    while kills < 3:
        process = run_stage(corpus, trainable, 10)
        time.sleep(chance.uniform(0.3, 0.9) * seconds)
        if not kill(process):
            assert final_files(trainable, ("exp",)) == wanted
            (trainable / "exp").rename(trainable / f"exp.{kills}.tmp")
        kills += 1
    assert run_stage(corpus, trainable, 10).wait() == 0, (trainable / "stdout").read_text()[-3000:]
    assert final_files(trainable, ("exp",)) == wanted


def epoch_losses(folder: Path) -> dict[str, list[str]]:
    """Epoch -> the losses of training and development that its line in any of the logs shows."""
    losses = {}
    for path in sorted(folder.glob("exp/asr_train_tiny*/train*.log")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if epoch := re.search(r" (\d+)epoch results:", line):
                losses[epoch[1]] = re.findall(r"(loss\w*=[^,; ]+)", line)
    return losses


def test_a_training_killed_in_mid_epoch_comes_to_the_same_losses(corpus: Path, trainable: Path) -> None:
    assert run_stage(corpus, trainable, 10).wait() == 0, (trainable / "stdout").read_text()[-3000:]
    assert run_stage(corpus, trainable, 11).wait() == 0, (trainable / "stdout").read_text()[-3000:]
    wanted = epoch_losses(trainable)
    assert sorted(wanted) == ["1", "2"] and len(wanted["2"]) >= 6 and wanted["1"] != wanted["2"]

    (experiment,) = (trainable / "exp").glob("asr_train_tiny*")
    experiment.rename(trainable / "undisturbed")
    process = run_stage(corpus, trainable, 11)
    deadline = time.monotonic() + 600
    while "2epoch:train:1-1batch" not in (text := read(experiment / "train.log")):
        assert time.monotonic() < deadline and process.poll() is None, text[-3000:]
        time.sleep(0.01)
    assert kill(process), "the training was finished before it could be killed"
    assert sorted(epoch_losses(trainable)) == ["1"]

    # As by a crash of the machine: the checkpoint has these parameters, too.
    parameters = experiment / "1epoch.pth"
    parameters.write_bytes(parameters.read_bytes()[:5000])
    assert run_stage(corpus, trainable, 11).wait() == 0, (trainable / "stdout").read_text()[-3000:]
    said = (trainable / "stdout").read_text()
    assert "training goes on where it stopped" in said and "1epoch.pth is cut off or damaged; it is kept as" in said
    assert "1/2epoch started" not in read(experiment / "train.log"), "the first epoch was trained again"
    assert epoch_losses(trainable) == wanted

    # What is finished, but cut off, is averaged again.
    model = experiment / "valid.loss.ave.pth"
    whole_model = model.read_bytes()
    model.resolve().write_bytes(whole_model[:-1])
    assert run_stage(corpus, trainable, 11).wait() == 0, (trainable / "stdout").read_text()[-3000:]
    assert model.read_bytes()[-22:-18] == b"PK\5\6" and epoch_losses(trainable) == wanted
    assert run_stage(corpus, trainable, 11).wait() == 0
    assert (trainable / "stdout").read_text().count("stage 11: training: done, skipped") == 1


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
