"""A model's whole life with ESPnet's own commands, through the launcher: statistics, training, resuming, averaging, text."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from tests import tiny

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = [sys.executable, "-m", "espnet_ee", "-m"]
TEXTS = ["A", "AB", "B A", "CD", "DAB", "A C"]
CONFIG = {
    **tiny.TRAINING,
    "batch_type": "numel",
    "batch_bins": 100000,
    "num_workers": 0,
    "keep_nbest_models": 2,
}
# As Kaldi's run.pl: options, a log file, a command.
RUN_PL = '#!/bin/sh\nwhile [ "${1#--}" != "$1" ]; do shift 2; done\nlog=$1; shift; mkdir -p "$(dirname "$log")"; exec "$@" >"$log" 2>&1\n'
# ESPnet's own spawn gives every child one GPU; where there is none, only that number is changed.
CPU_SPAWN = """
import multiprocessing, sys, types
import torch
spawn = multiprocessing.get_context("spawn")
def process(target, args, daemon):
    args[0].ngpu = 0
    return spawn.Process(target=target, args=args, daemon=daemon)
torch.multiprocessing.get_context = lambda name: types.SimpleNamespace(Process=process)
from espnet_ee.__main__ import main
main()
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        words,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    return done


def train_arguments(output_dir: str, shapes: str, *more: str) -> list[str]:
    words = ["--config", "train.yaml", "--token_list", "tokens.txt", "--token_type", "char", "--output_dir", output_dir]
    for part in ("train", "valid"):
        words += [f"--{part}_data_path_and_name_and_type", "wav.scp,speech,sound"]
        words += [f"--{part}_data_path_and_name_and_type", "text,text,text"]
        words += [f"--{part}_shape_file", shapes.format(part)]
    return [*words, *more]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    """A recipe's folder with a stock collect_stats run, started by ESPnet's launch as asr.sh starts it."""
    folder = tmp_path_factory.mktemp("recipe")
    random = np.random.default_rng(0)
    for number in range(len(TEXTS)):
        soundfile.write(folder / f"{number}.wav", random.standard_normal(8000 + 1000 * number) * 0.1, 16000)
    (folder / "wav.scp").write_text("".join(f"utt{n} {folder}/{n}.wav\n" for n in range(len(TEXTS))))
    (folder / "text").write_text("".join(f"utt{n} {text}\n" for n, text in enumerate(TEXTS)))
    (folder / "tokens.txt").write_text("".join(f"{token}\n" for token in tiny.TOKENS))
    (folder / "train.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "run.pl").write_text(RUN_PL)
    (folder / "run.pl").chmod(0o755)
    run(
        folder, *LAUNCHER, "espnet2.bin.launch", "--cmd", "./run.pl", "--log", "stats/stats.log", "--ngpu", "0", "--",
        *LAUNCHER, "espnet2.bin.asr_train", *train_arguments("stats", "wav.scp", "--collect_stats", "true"),
    )  # fmt: skip
    return folder


def train(folder: Path, launcher: list[str], output_dir: str, epochs: int, *more: str) -> str:
    """Trains up to a number of epochs in all, going on where the folder's training stopped; returns the log."""
    normalize = ("--normalize", "global_mvn", "--normalize_conf", "stats_file=stats/train/feats_stats.npz")
    words = train_arguments(output_dir, "stats/{}/speech_shape", *normalize, "--resume", "true", *more)
    return run(folder, *launcher, "espnet2.bin.asr_train", *words, "--max_epoch", str(epochs)).stderr


@pytest.fixture(scope="module")
def trained(recipe: Path) -> Path:
    """Two epochs in two gloo processes that ESPnet's own spawn starts, then a third one by resuming in one process."""
    spawning = [sys.executable, "-c", CPU_SPAWN, "-m"]
    first = train(recipe, spawning, "exp", 2, "--ngpu", "2", "--multiprocessing_distributed", "true", "--dist_backend", "gloo")
    assert ":0/2]" in first and "2epoch results" in first
    config = yaml.safe_load((recipe / "exp/config.yaml").read_text())
    assert config["dist_world_size"] == 2 and config["distributed"] is True
    resumed = train(recipe, LAUNCHER, "exp", 3)
    assert "The training was resumed using" in resumed
    assert "3epoch results" in resumed and "2epoch results" not in resumed
    return recipe


def test_every_exit_is_trained_resumed_and_averaged(trained: Path):
    first, last = (torch.load(trained / f"exp/{name}.pth", weights_only=True) for name in ("2epoch", "3epoch"))
    average = torch.load(trained / "exp/valid.loss.ave.pth", weights_only=True)
    for name in ("ctc.ctc_lo.weight", "exit_ctc.1.ctc_lo.weight", "encoder.exit_norms.1.weight"):
        assert not torch.equal(first[name], last[name])
        torch.testing.assert_close(average[name], (first[name] + last[name]) / 2)


def test_stock_inference_recognises_and_a_fresh_process_loads(trained: Path):
    files = ("--asr_train_config", "exp/config.yaml", "--asr_model_file", "exp/valid.loss.ave.pth")
    (trained / "decode_asr.yaml").write_text("ctc_weight: 0.3\nbeam_size: 1\n")  # as recipes have it, for another model
    done = run(
        trained, *LAUNCHER, "espnet2.bin.asr_inference", *files, "--data_path_and_name_and_type", "wav.scp,speech,sound",
        "--output_dir", "stock", "--config", "decode_asr.yaml", "--ngpu", "0",
    )  # fmt: skip
    assert "searched with ctc_weight 1.0 in place of 0.3" in done.stderr
    keys = [f"utt{number}" for number in range(len(TEXTS))]
    assert [line.split()[0] for line in (trained / "stock/1best_recog/text").read_text().splitlines()] == keys
    run(
        trained, sys.executable, "-m", "espnet_ee.cli", "decode", "--model", "exp", "--data", ".", "--out", "ours",
        "--policy", "fixed", "--policy_conf", "exit_layer=1",
    )  # fmt: skip
    assert (trained / "ours/decode_fixed" / trained.name / "utt2exit").read_text() == "".join(f"{key} 1\n" for key in keys)


def test_stock_pack_takes_the_model(trained: Path):
    files = ("--asr_train_config", "exp/config.yaml", "--asr_model_file", "exp/valid.loss.ave.pth")
    run(trained, *LAUNCHER, "espnet2.bin.pack", "asr", *files, "--option", "stats/train/feats_stats.npz", "--outpath", "p.zip")
    assert (trained / "p.zip").stat().st_size > 0
