"""The backend slurm: a real single-node Slurm in the test's own folder, where Debian's slurm-wlm and munge are installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "egs" / "mini" / "asr1"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "sinfo")


def why_not() -> str:
    """Why Slurm cannot be started here; empty if it can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"not installed: {' '.join(missing)} (Debian: slurm-wlm munge)"
    return "" if os.geteuid() == 0 else "slurmd starts jobs as root only"


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return made.getsockname()[1]


def configuration(folder: Path) -> str:
    host = socket.gethostname().split(".")[0]
    return f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
AuthType=auth/munge
AuthInfo=socket={folder}/munge
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=1 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Starts munge, the controller and one node; yields the value of SLURM_CONF."""
    if why_not():
        pytest.skip(why_not())
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    key = folder / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    (folder / "slurm.conf").write_text(configuration(folder))
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    munge = [f"--socket={folder}/munge", f"--key-file={key}", f"--pid-file={folder}/pid", f"--log-file={folder}/log",
             f"--seed-file={folder}/seed"]  # fmt: skip
    host = socket.gethostname().split(".")[0]
    started = []
    for command in (["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"], ["slurmd", "-D", "-N", host]):
        output = (folder / f"{command[0]}.out").open("wb")
        started.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
        time.sleep(0.5)
    try:
        wait_for_node(environment)
        yield environment["SLURM_CONF"]
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(timeout=30)


def wait_for_node(environment: dict[str, str]) -> None:
    state = ""
    for _ in range(60):
        asked = subprocess.run(["sinfo", "-h", "-o", "%t"], env=environment, capture_output=True, text=True, check=False)
        state = asked.stdout.strip()
        if state == "idle":
            return
        time.sleep(0.5)
    pytest.skip(f"Slurm was started, but its node did not come up: {state!r}")


def run_recipe(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Stages 1 to 4 of the mini recipe."""
    folder.mkdir(exist_ok=True)
    options = ["--datadir", "data", "--dumpdir", "dump", "--expdir", "exp", "--utterances_per_speaker", "1", "--nj", "1"]
    for name in ("asr_ee.sh", "cmd.sh", "path.sh", "db.sh", "utils", "local", "conf"):
        if not (folder / name).exists():
            (folder / name).symlink_to(RECIPE / name)
    (folder / "run.sh").write_bytes((RECIPE / "run.sh").read_bytes())
    return subprocess.run(
        ["bash", "run.sh", *options, "--stop_stage", "4", "--note", 'it\'s "quoted" $(touch pwned)'],
        cwd=folder,
        env={**os.environ, "ESPNET_EE_PYTHON": sys.executable, "PYTHONPATH": str(ROOT), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def files_of(folder: Path) -> dict[str, bytes]:
    found = {}
    for top in ("data", "dump"):
        for path in (folder / top).rglob("*"):
            if path.is_file() and path.suffix != ".log":
                found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def test_slurm_makes_the_same_files_as_one_machine(slurm: str, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    assert run_recipe(here).returncode == 0
    done = run_recipe(there, cmd_backend="slurm", SLURM_CONF=slurm)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stage 3: a job array of 3 tasks" in done.stdout
    assert files_of(there) == files_of(here)
    logs = sorted(path.name for path in (there / "dump" / "log").glob("array3.*.log"))
    assert logs == ["array3.1.log", "array3.2.log", "array3.3.log"]
    assert not (there / "pwned").exists()

    # A task that fails makes the run fail, and says why; the tasks that came through are not done again.
    next((there / "data/local/corpus").rglob("MiniSpeech/dev/**/*.flac")).write_bytes(b"")
    for name in ("dev", "test"):
        (there / "dump" / "raw" / name / ".done").unlink()
    failed = run_recipe(there, cmd_backend="slurm", SLURM_CONF=slurm)
    assert failed.returncode != 0
    assert "not readable as FLAC" in failed.stderr and "the job array failed" in failed.stderr
    assert (there / "dump/raw/test/.done").is_file() and not (there / "dump/raw/dev/.done").exists()


# --- without a Slurm ---------------------------------------------------------------------------------------------------


def test_several_nodes_are_asked_for_as_espnets_launcher_says(tmp_path: Path) -> None:
    """ESPnet's own launcher, over the script that it calls slurm.pl, down to the words that sbatch gets."""
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text('#!/bin/sh\nprintf "%s\\n" "$@" >"$ASKED"\n')
    sbatch.chmod(0o755)
    asked = tmp_path / "asked"
    command = [
        sys.executable, "-m", "espnet2.bin.launch", "--cmd", str(RECIPE / "utils/slurm.pl"), "--log", str(tmp_path / "log"),
        "--ngpu", "8", "--num_nodes", "2", "--init_file_prefix", str(tmp_path / "init_"), "--", "train.py", "--x", "a b",
    ]  # fmt: skip
    environment = {
        **os.environ, "ASKED": str(asked), "PATH": f"{sbatch.parent}:{os.environ['PATH']}", "slurm_train_opts": "-p gpu",
    }  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    words = asked.read_text().splitlines()
    for word in ("--wait", "--nodes=2", "--ntasks-per-node=1", "--gres=gpu:8", "-p", "gpu", "a b", "--dist_launcher", "slurm"):
        assert word in words
    assert words.index("srun") < words.index("train.py")


def test_several_nodes_need_a_cluster(tmp_path: Path) -> None:
    result = subprocess.run(
        ["bash", str(RECIPE / "run.sh"), "--num_nodes", "2"],
        env={**os.environ, "ESPNET_EE_PYTHON": sys.executable}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 2 and "--num_nodes 2 needs the backend slurm" in result.stderr


def test_an_unknown_backend_is_refused(tmp_path: Path) -> None:
    result = run_recipe(tmp_path / "x", cmd_backend="kubernetes")
    assert result.returncode == 2 and "the backend 'kubernetes' is none of: local slurm" in result.stderr
