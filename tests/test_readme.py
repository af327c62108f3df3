"""Every command of the README is run, and every path it names is there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language, without the indent of the list they stand in."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", README, re.M | re.S)
    return [re.sub(rf"^{indent}", "", text, flags=re.M) for indent, text in found]


def commands() -> list[str]:
    lines = [line.split("  #")[0].split(" #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ESPNET_EE_PYTHON": sys.executable}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_there_are_commands() -> None:
    assert len(commands()) >= 3
    assert len(blocks("python")) == 1


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("python3 ")])
@pytest.mark.process
def test_python_commands_run(command: str) -> None:
    done = run([sys.executable, *command.split()[1:]])
    assert done.returncode == 0, done.stderr
    assert "exit_layers" in done.stdout


@pytest.mark.parametrize("command", re.findall(r"`(python3 [^`]*--help)`", README))
@pytest.mark.process
def test_help_within_the_text_is_there(command: str) -> None:
    done = run([sys.executable, *command.split()[1:]])
    assert done.returncode == 0, done.stderr
    assert "--" in done.stdout


@pytest.mark.parametrize("command", [line for line in commands() if not line.startswith("python3 ")])
def test_scripts_take_the_options(command: str) -> None:
    """They are run whole by tests/recipes (on a smaller corpus) and by the CI; here: they start, and know their options."""
    script, *arguments = command.split()
    assert os.access(ROOT / script, os.X_OK)
    done = run(["bash", script, "--help"])
    assert done.returncode == 0, done.stderr
    for option in (argument for argument in arguments if argument.startswith("--")):
        assert option in done.stdout


@pytest.mark.process
def test_the_python_example_runs(tmp_path: Path) -> None:
    config, checkpoint = tiny.save(tmp_path, tiny.model())
    code = blocks("python")[0]
    (tmp_path / "decode.yaml").write_text("policy: entropy\npolicy_conf: {threshold: 0.2}\n")
    calibrated = "exp/.../policies/decode_learned_wer_loss1.yaml"
    for name, file in (
        (calibrated, tmp_path / "decode.yaml"),
        ("exp/.../config.yaml", config),
        ("exp/.../valid.loss.ave.pth", checkpoint),
    ):
        assert name in code
        code = code.replace(name, str(file))
    done = run([sys.executable, "-c", f"import numpy\nsamples = numpy.zeros(16000, 'float32')\n{code}"])
    assert done.returncode == 0, done.stderr
    assert re.search(r" (1|2|4) \d+\n$", done.stdout)


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"\]\(([^):]+)\)|`((?:egs|espnet_ee|tools/(?!venv))[\w/.-]+)`", README)))
)
def test_paths_exist(path: tuple[str, str]) -> None:
    assert (ROOT / (path[0] or path[1])).exists()


def test_the_numbers_are_those_of_the_results() -> None:
    page = (ROOT / "egs/an4/asr1/README.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| six exits")).split(" | ")
    assert re.search(r"([\d.]+) % WER with all 12 blocks", README)[1] == row[6]
    learned = re.findall(r"([\d.]+) % at ([\d.]+) %", README)
    assert [f"{wer} at {share} %" for wer, share in learned] == [row[7].replace(" compute", ""), row[8].rstrip(" |")]
    assert re.search(r"one exit, at its end: ([\d.]+) %", README)[1] in next(
        line for line in page.splitlines() if line.startswith("| one exit")
    )
