"""tools/install.sh: one-line errors, and nothing to do when it is done. (That it installs is shown by the tests running.)"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "install.sh"


def fake_python(folder: Path, body: str) -> str:
    """An executable that stands for an interpreter."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def install(*arguments: str, python: str, script: Path = SCRIPT) -> subprocess.CompletedProcess:
    """Runs an install.sh that must not get as far as installing."""
    return subprocess.run(
        ["bash", str(script), *arguments],
        env={**os.environ, "PYTHON": python},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("exit 127", "does not run"),
        ("echo 3.9", "is Python 3.9"),
        ("echo 3.14", "is Python 3.14"),
        ("echo 2.7", "is Python 2.7"),
    ],
)
def test_an_interpreter_that_will_not_do(tmp_path: Path, body: str, message: str):
    result = install(python=fake_python(tmp_path, body))
    assert result.returncode == 1
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_no_interpreter():
    result = install(python="no-such-python")
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "no-such-python: no such interpreter" in result.stderr


@pytest.mark.parametrize("arguments", [["--extras"], ["--dev=all"], ["--frobnicate"], ["x"], ["--dev", "x"]])
def test_wrong_options(tmp_path: Path, arguments: list[str]):
    result = install(*arguments, python=fake_python(tmp_path, "echo 3.11"))
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small copy of the files that install.sh needs; its interpreter is a script that notes what it is called for."""
    (tmp_path / "tools").mkdir()
    for name in ("setup.py", "pyproject.toml", "tools/install.sh"):
        (tmp_path / name).write_bytes((SCRIPT.parents[1] / name).read_bytes())
    fake_python(
        tmp_path,
        f"""
case "$*" in
    *version_info*) echo 3.11 ;;
    *flock*) exec {sys.executable} "$@" ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo venv >>{tmp_path}/calls ;;
    *"pip install"*) echo pip >>{tmp_path}/calls; sleep 0.5; [ ! -e {tmp_path}/no-network ] ;;
esac""",
    )
    return tmp_path


def calls(checkout: Path) -> list[str]:
    """What was installed so far."""
    return (checkout / "calls").read_text(encoding="utf-8").split()


def run(checkout: Path, *arguments: str) -> subprocess.CompletedProcess:
    return install(*arguments, python=str(checkout / "python"), script=checkout / "tools" / "install.sh")


def test_a_second_run_does_nothing(checkout: Path):
    assert run(checkout, "--dev").returncode == 0
    assert calls(checkout) == ["venv", "pip"]
    again = run(checkout, "--dev")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert run(checkout).returncode == 0, "dev contains what recipes need"
    assert calls(checkout) == ["venv", "pip"]


def test_more_extras_and_changed_requirements_bring_it_up_to_date(checkout: Path):
    run(checkout)
    run(checkout, "--dev")
    assert calls(checkout) == ["venv", "pip", "pip"]
    with (checkout / "setup.py").open("a", encoding="utf-8") as stream:
        stream.write("# changed\n")
    run(checkout, "--dev")
    assert calls(checkout) == ["venv", "pip", "pip", "pip"]


def test_an_unfinished_environment_is_started_over(checkout: Path):
    (checkout / "no-network").touch()
    failed = run(checkout)
    assert failed.returncode == 1 and "the full log is" in failed.stderr
    (checkout / "no-network").unlink()
    leftover = checkout / "tools" / "venv" / "3.11" / "leftover"
    leftover.touch()
    assert run(checkout).returncode == 0
    assert not leftover.exists()
    assert calls(checkout) == ["venv", "pip", "venv", "pip"]


def test_two_at_once_install_once(checkout: Path):
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: run(checkout), range(3)))
    assert [result.returncode for result in results] == [0, 0, 0]
    assert calls(checkout) == ["venv", "pip"]
