"""kill -9 at any moment of stages 1 to 5, then a rerun: the final files are those of a run that nobody disturbed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "egs" / "librispeech" / "asr1"
KILLS = 20
LEFT_OVERS = (".tmp", ".old", ".log")
"""Temporary places of a killed run may stay (nothing reads them); logs hold times."""


def start(corpus: Path, folder: Path) -> subprocess.Popen[bytes]:
    """The recipe's stages 1 to 5 with stored speeds, in a process group of its own."""
    options = {
        "librispeech_root": corpus, "train_set": "train_clean_5", "test_sets": "dev test", "hold_out": "4",
        "speed_perturb": "stored", "speed_perturb_factors": "0.9 1.0", "token_type": "bpe", "nbpe": "40", "nj": "1", "stop_stage": "5",
        "datadir": "data", "dumpdir": "dump", "expdir": "exp",
    }  # fmt: skip
    # Relative paths in two folders, so that the tables of both runs name the same files.
    links = [(name, RECIPE / name) for name in ("asr_ee.sh", "cmd.sh", "path.sh", "db.sh", "utils", "local", "conf")]
    for name, target in links:
        if not (folder / name).exists():
            (folder / name).symlink_to(target)
    (folder / "run.sh").write_bytes((RECIPE / "run.sh").read_bytes())
    return subprocess.Popen(
        ["bash", "run.sh", *(f"--{name}={value}" for name, value in options.items())],
        cwd=folder,
        env={**os.environ, "ESPNET_EE_PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=(folder / "stdout").open("ab"),
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


def final_files(folder: Path) -> dict[str, bytes]:
    files = {}
    for top in ("data", "dump"):
        for path in sorted((folder / top).rglob("*")):
            parts = path.relative_to(folder).parts
            if path.is_file() and not any(part.endswith(LEFT_OVERS) for part in parts):
                files["/".join(parts)] = path.read_bytes()
    return files


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus under the name of LibriSpeech's smallest part."""
    from espnet_ee.data.synthetic import make_corpus

    root = tmp_path_factory.mktemp("corpus")
    make_corpus(root, nj=1, utterances_per_speaker=2)
    (root / "LibriSpeech").mkdir()
    (root / "LibriSpeech" / "train-clean-5").symlink_to(root / "MiniSpeech" / "train")
    return root


def test_kills_leave_no_trace(corpus: Path, tmp_path: Path) -> None:
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    whole.mkdir()
    disturbed.mkdir()
    began = time.monotonic()
    assert start(corpus, whole).wait() == 0, (whole / "stdout").read_text()
    seconds = time.monotonic() - began
    wanted = final_files(whole)
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
