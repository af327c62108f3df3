"""A short soak with a fixed seed; ``tools/soak.py`` goes on as long as one likes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process
ROOT = Path(__file__).resolve().parents[2]


def test_a_short_story_of_kills_full_disks_and_second_runs_loses_nothing(tmp_path: Path) -> None:
    words = ["tools/soak.py", "--operations", "25", "--seed", "4", "--minutes", "2", "--folder", str(tmp_path / "story")]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    assert "nothing lost, nothing mixed" in done.stdout
    assert not (tmp_path / "story").exists()
