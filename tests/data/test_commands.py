"""The data commands as a user calls them: one line on stderr and the right exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def call(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"espnet_ee.bin.{name}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_from_corpus_to_tokens(mini_root: Path, tmp_path: Path) -> None:
    steps = [
        ("prepare_data", "--corpus", "mini", "--corpus_root", mini_root, "--out", tmp_path / "data"),
        ("perturb_speed", "--in", tmp_path / "data/train", "--out", tmp_path / "data/train_sp", "--factors", "0.9 1.0",
         "--audio_dir", tmp_path / "data/audio"),
        ("format_audio", "--in", tmp_path / "data/train_sp", "--out", tmp_path / "dump/org", "--fs", 16000, "--nj", 2),
        ("filter_lengths", "--in", tmp_path / "dump/org", "--out", tmp_path / "dump/train", "--max_seconds", 2.5),
        ("make_tokens", "--text", tmp_path / "dump/train/text", "--token_type", "char", "--out", tmp_path / "tokens"),
        ("validate_data", tmp_path / "dump/train", "--feats_type", "raw"),
    ]  # fmt: skip
    for step in steps:
        result = call(*step)
        assert (result.returncode, result.stderr) == (0, ""), step
    assert "speakers" in result.stdout
    assert (tmp_path / "tokens" / "tokens.txt").read_text().startswith("<blank>\n<unk>\n")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("validate_data", "nowhere"), 1, "validate_data: error: nowhere: no such data directory"),
        (("prepare_data", "--corpus", "an4", "--corpus_root", "nowhere", "--out", "x"), 1, "or as AN4 in db.sh"),
        (("prepare_data", "--corpus", "an4", "--corpus_root", "x", "--out", "x", "--parts", "y"), 2, "an4 has no 'y'"),
        (("perturb_speed", "--in", "x", "--out", "y", "--audio_dir", "z", "--factors", "0"), 2, "--factors: '0'"),
        (("make_tokens", "--text", "x", "--token_type", "bpe", "--out", "y"), 2, "--nbpe"),
        (("format_audio", "--in", "x", "--output", "y"), 2, "required: --out"),
    ],
)
def test_errors_are_one_line_and_a_status(arguments: tuple[str, ...], status: int, message: str) -> None:
    result = call(*arguments)
    assert result.returncode == status
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
