""".ci/run: which interpreters it tests with."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(folder: Path, interpreters: dict[str, str], pyenv: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs .ci/run in a checkout whose tools/test.sh prints its interpreter, where only these interpreters are on PATH.

    Args:
        interpreters: what each says when it is asked for its version; nothing: it cannot make environments.
    """
    for name in (".ci", "tools", "bin"):
        (folder / name).mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci")
    (folder / "tools" / "test.sh").write_text(
        f'echo "tested with $(basename "${{PYTHON}}")"; exit {status}\n', encoding="utf-8"
    )
    for name in ("bash", "dirname", "basename"):
        (folder / "bin" / name).symlink_to(shutil.which(name) or name)
    for name, version in interpreters.items():
        script(folder / "bin" / name, version)
    environment = {**os.environ, "PATH": str(folder / "bin"), "PYENV_ROOT": str(pyenv)}
    return subprocess.run(
        ["bash", ".ci/run"], cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def script(path: Path, version: str) -> None:
    """Makes something that answers as an interpreter does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n[ -n '{version}' ] && echo {version}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("interpreters", "tested"),
    [
        ({"python3.11": "3.11", "python3.13": "3.13", "python3.12": "3.12"}, ["python3.11", "python3.13"]),
        ({"python3.10": "3.10", "python3.12": "3.12"}, ["python3.10", "python3.12"]),
        ({"python3.11": "", "python3.10": "3.10", "python3.13": ""}, ["python3.10"]),
        ({"python3.12": "3.12"}, ["python3.12"]),
    ],
)
def test_one_interpreter_for_each_espnet(tmp_path: Path, interpreters: dict[str, str], tested: list[str]) -> None:
    result = run(tmp_path, interpreters, tmp_path / "nothing")
    assert [line.split()[-1] for line in result.stdout.splitlines() if line.startswith("tested")] == tested
    assert result.returncode == 0 and f"passed with {len(tested)} of 2" in result.stdout


def test_pyenv_is_searched(tmp_path: Path) -> None:
    script(tmp_path / "pyenv" / "versions" / "3.13.0" / "bin" / "python", "3.13")
    result = run(tmp_path, {"python3.11": "3.11", "python3.13": ""}, tmp_path / "pyenv")
    assert "passed with 2 of 2" in result.stdout


def test_without_an_interpreter_nothing_is_said_to_have_passed(tmp_path: Path) -> None:
    result = run(tmp_path, {}, tmp_path / "nothing")
    assert result.returncode == 1 and "passed" not in result.stdout


def test_failing_tests_fail_the_whole(tmp_path: Path) -> None:
    result = run(tmp_path, {"python3.11": "3.11", "python3.13": "3.13"}, tmp_path / "nothing", status=3)
    assert result.returncode != 0 and result.stdout.count("tested") == 1
