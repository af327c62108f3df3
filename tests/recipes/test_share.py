"""Stage 15 uploads where it is told to, and nowhere else; several GPUs and nodes: the words that ESPnet gets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture
def upload(bash, root: Path, tmp_path: Path):
    """Stage 15 of an experiment with a package, with a stand-in for the hub's command."""
    package = tmp_path / "exp #1" / "package"
    package.mkdir(parents=True)
    (package / "config.yaml").write_text("encoder: x\n", encoding="utf-8")
    (tmp_path / "bin").mkdir()
    hf = tmp_path / "bin" / "hf"
    hf.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >>"{tmp_path}/asked"\n', encoding="utf-8")
    hf.chmod(0o755)

    def run(*options: str, status: int = 0) -> tuple[str, list[str]]:
        words = (f"--asr_exp={package.parent}", "--stage=15", *options)
        result = bash(str(root / "egs/mini/asr1/run.sh"), *words, PATH=f"{hf.parent}:{os.environ['PATH']}")
        assert result.returncode == status, result.stderr
        asked = tmp_path / "asked"
        return result.stdout + result.stderr, asked.read_text(encoding="utf-8").splitlines() if asked.exists() else []

    return run


def test_nothing_is_uploaded_unasked(upload) -> None:
    said, asked = upload()
    assert "--upload_to" in said and asked == []


def test_a_package_is_uploaded_once(upload, tmp_path: Path) -> None:
    package = tmp_path / "exp #1" / "package"
    words = ["upload", "me/model", str(package)]
    assert upload("--upload_to", "me/model")[1] == words
    assert upload("--upload_to", "me/model")[1] == words
    (package / "config.yaml").write_text("encoder: y\n", encoding="utf-8")
    assert upload("--upload_to", "me/model")[1] == words * 2


def test_what_is_not_whole_or_of_another_model_is_not_uploaded(upload, tmp_path: Path) -> None:
    experiment = tmp_path / "exp #1"
    (experiment / ".stage14.files").write_text("./config.yaml\n./model.safetensors\n", encoding="utf-8")
    said, asked = upload("--upload_to", "me/model", status=1)
    assert "package lacks a file that stage 14 put there; run stage 14 first\n" in said and asked == []
    (experiment / "package" / "model.safetensors").touch()
    (experiment / "valid.loss.ave.pth").write_text("other", encoding="utf-8")
    (experiment / ".stage14.done").write_text("packed\n1 2 exp #1/valid.loss.ave.pth\n", encoding="utf-8")
    said, asked = upload("--upload_to", "me/model", "--inference_asr_model", "valid.loss.ave.pth", status=1)
    assert "valid.loss.ave.pth; run stage 14 first\n" in said and asked == []
    (experiment / "valid.loss.ave.pth").unlink()  # whoever keeps the package alone
    assert upload("--upload_to", "me/model")[1] != []


DEVICES = """#!/usr/bin/env bash
set -euo pipefail
ngpu=$1 num_nodes=$2 asr_exp="exp/a b" common_args=()
. {template}/utils/stages_train.sh
add_devices
printf '%s\\n' ${{common_args[@]+"${{common_args[@]}}"}}
"""


@pytest.mark.parametrize(
    ("ngpu", "num_nodes", "words"),
    [
        ("0", "1", []),
        ("1", "1", []),
        ("4", "1", ["--multiprocessing_distributed"]),
        ("8", "2", ["--multiprocessing_distributed", "--dist_launcher", "--dist_init_method"]),
        ("0", "2", ["--multiprocessing_distributed", "--dist_launcher", "--dist_init_method", "--dist_backend"]),
    ],
)
def test_devices(bash, template: Path, tmp_path: Path, ngpu: str, num_nodes: str, words: list[str]) -> None:
    said = bash(ngpu, num_nodes, text=DEVICES.format(template=template)).stdout.split("\n")
    assert [word for word in said if word.startswith("--")] == words
    if "--dist_init_method" in words:
        assert said[said.index("--dist_init_method") + 1].startswith(f"file://{tmp_path}/exp/a b/.dist_init_")


THREADS = """#!/usr/bin/env bash
set -euo pipefail
ngpu=$1 train_threads=$2 asr_exp=. feats_type=raw feats_normalize=config seed="" fly_factors="" num_nodes=1
asr_stats_dir=. token_type=char inference_asr_model=model.pth common_args=() train_run=(bash -c 'printenv OMP_NUM_THREADS >threads')
. {template}/utils/stages_train.sh
set_common_args() {{ :; }}
touch model.pth
run_training false
cat threads; printenv OMP_NUM_THREADS; grep threads: train_time.yaml
"""


@pytest.mark.parametrize(("ngpu", "threads", "used"), [("0", "", "1"), ("0", "3", "3"), ("1", "3", "1")])
def test_threads_of_a_training(bash, template: Path, ngpu: str, threads: str, used: str) -> None:
    """And of nothing else."""
    assert bash(ngpu, threads, text=THREADS.format(template=template)).stdout.split("\n")[:3] == [used, "1", f"threads: {used}"]
