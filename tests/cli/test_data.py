"""The data commands as a user calls them: one line on stderr and the right exit status."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def call(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "espnet_ee.cli", "data", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.process
def test_from_corpus_to_tokens(tmp_path: Path) -> None:
    steps = [
        ("mini", "--out", tmp_path, "--utterances_per_speaker", 1),
        ("prepare", "--corpus", "mini", "--root", tmp_path, "--out", tmp_path / "data"),
        ("speed", "--data", tmp_path / "data/train", "--out", tmp_path / "data/train_sp", "--factors", "0.9", "1.0",
         "--audio_dir", tmp_path / "data/audio"),
        ("format", "--data", tmp_path / "data/train_sp", "--out", tmp_path / "dump/org", "--fs", 16000, "--nj", 2),
        ("filter", "--data", tmp_path / "dump/org", "--out", tmp_path / "dump/train", "--max_seconds", 2.5),
        ("tokens", "--text", tmp_path / "dump/train/text", "--token_type", "char", "--out", tmp_path / "tokens"),
        ("validate", "--data", tmp_path / "dump/train", "--feats_type", "raw"),
    ]  # fmt: skip
    for step in steps:
        result = call(*step)
        assert (result.returncode, result.stderr) == (0, ""), step
    assert "speakers" in result.stdout
    assert (tmp_path / "tokens" / "tokens.txt").read_text().startswith("<blank>\n<unk>\n")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("validate", "--data", "nowhere"), 1, ("espnet-ee: error: ", "nowhere")),
        (("prepare", "--corpus", "an4", "--root", "nowhere", "--out", "x"), 1, ("nowhere", "AN4", "db.sh")),
        (("prepare", "--corpus", "an4", "--root", "x", "--out", "x", "--sets", "y"), 2, ("--sets", "an4", "'y'")),
        (("prepare", "--corpus", "an4", "--root", "x", "--out", "x", "--corpus_options", "y"), 2, ("--corpus_options", "'y'")),
        (("speed", "--data", "x", "--out", "y", "--audio_dir", "z", "--factors", "0"), 2, ("--factors", "'0'")),
        (("tokens", "--text", "x", "--token_type", "bpe", "--out", "y"), 2, ("--nbpe",)),
        (("format", "--data", "x", "--output", "y"), 2, ("--out",)),
        (("download", "--parts", "elsewhere", "--out", "x"), 2, ("--parts", "elsewhere")),
    ],
)
def test_errors_are_one_line_and_a_status(arguments: tuple[str, ...], status: int, words: tuple[str, ...]) -> None:
    result = call(*arguments)
    assert result.returncode == status
    assert all(word in result.stderr.splitlines()[-1] for word in words), result.stderr
    assert "Traceback" not in result.stderr
