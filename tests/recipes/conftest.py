"""What the tests of the shell side share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "egs" / "TEMPLATE" / "asr1"

Bash = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture
def template() -> Path:
    """The recipes' template."""
    return TEMPLATE


@pytest.fixture
def bash(tmp_path: Path) -> Bash:
    """Runs a shell script's path or text in a folder (default: the test's own); recipes use this interpreter."""

    def run(*arguments: str, text: str | None = None, cwd: Path = tmp_path, **environment: str) -> subprocess.CompletedProcess:
        if text is not None:
            script = tmp_path / "script.sh"
            script.write_text(text, encoding="utf-8")
            arguments = (str(script), *arguments)
        return subprocess.run(
            ["bash", *arguments],
            cwd=cwd,
            env={**os.environ, "ESPNET_EE_PYTHON": sys.executable, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    return run
