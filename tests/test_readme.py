"""Every command of the READMEs works when it is pasted into a clone, and every path they name is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests import tiny

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEMPLATE = (ROOT / "egs/TEMPLATE/README.md").read_text(encoding="utf-8")
MINI = "egs/mini/asr1/data/local/corpus/MiniSpeech/test/301/3011"
STOCK_EXPERIMENT = "egs/mini/asr1/exp/asr_train_ee_conformer_raw_char"  # what can be exported to stock ESPnet
EXPERIMENT = "egs/mini/asr1/exp/asr_train_ee_fast_conformer_raw_char"


def blocks(language: str) -> list[str]:
    """The README's code blocks of a language, without the indent of the list they stand in."""
    matches = re.findall(rf"^( *)```{language}\n(.*?)^ *```", README, re.M | re.S)
    return [re.sub(rf"^{indent}", "", text, flags=re.M) for indent, text in matches]


def lines() -> list[str]:
    """The README's lines for a shell."""
    return [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]


OURS = ("python3 ", "espnet-ee ")
PASTED = [
    *(line for line in lines() if line.startswith(OURS)),
    *re.findall(r"`((?:python3|espnet-ee) [^`]*--help)`", README),
    *re.findall(rf"^ +((?:{'|'.join(OURS)}).*)$", TEMPLATE, re.M),
]
SCRIPTS = [line for line in lines() if not line.startswith((*OURS, "."))]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, with an environment and what the mini recipe leaves, by a tiny model."""
    root = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name, follow_symlinks=False)
    programs = root / "tools/venv/{}.{}/bin".format(*sys.version_info[:2])
    programs.mkdir(parents=True)
    (programs.parent / ".done.recipe").touch()
    for name, words in (("python3", ""), ("espnet-ee", "-m espnet_ee.cli ")):
        (programs / name).write_text(f'#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} {words}"$@"\n')
        (programs / name).chmod(0o755)
    experiment = root / EXPERIMENT
    (experiment / "policies").mkdir(parents=True)
    _, checkpoint = tiny.save(experiment, tiny.model())
    Path(checkpoint).rename(experiment / "valid.loss.ave.pth")
    (experiment / "policies/decode_learned_wer_loss1.yaml").write_text("policy: entropy\npolicy_conf: {threshold: 0.2}\n")
    shutil.copytree(experiment, root / STOCK_EXPERIMENT)
    shutil.copytree(experiment, experiment / "package")  # an experiment, too, loads by its folder
    (root / MINI).mkdir(parents=True)
    for number in range(2):
        samples = np.random.default_rng(number).normal(0, 0.1, 16000)
        soundfile.write(root / MINI / f"301-3011-000{number}.flac", samples, 16000)
    return root


def paste(clone: Path, line: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "PYTHONPATH", "ESPNET_EE_PYTHON")}
    command = ["bash", "-c", f". tools/activate && {line}"]
    return subprocess.run(command, cwd=clone, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def test_there_is_something_to_paste() -> None:
    assert len(PASTED) >= 7 and len(SCRIPTS) >= 2 and len(blocks("python")) == 1
    assert ". tools/activate" in lines()


@pytest.mark.process
@pytest.mark.parametrize("line", PASTED)
def test_a_line_works_when_it_is_pasted(clone: Path, line: str) -> None:
    done = paste(clone, line)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.process
def test_transcribing_names_its_files(clone: Path) -> None:
    (line,) = [line for line in PASTED if "transcribe" in line and "*" in line]
    texts = paste(clone, line).stdout.splitlines()
    assert [text.partition("\t")[0] for text in texts] == [f"{MINI}/301-3011-000{number}.flac" for number in range(2)]


@pytest.mark.parametrize("line", SCRIPTS)
def test_scripts_take_the_options(line: str) -> None:
    """They are run whole by tests/recipes (on a smaller corpus) and by the CI; here: they start, and know their options."""
    script, *arguments = line.split()
    assert os.access(ROOT / script, os.X_OK)
    environment = {**os.environ, "ESPNET_EE_PYTHON": sys.executable}
    done = subprocess.run(["bash", script, "--help"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for option in (argument for argument in arguments if argument.startswith("--")):
        assert option in done.stdout


@pytest.mark.process
def test_the_python_example_runs(clone: Path) -> None:
    (clone / "example.py").write_text(blocks("python")[0])
    done = paste(clone, "python3 example.py")
    assert done.returncode == 0, done.stderr
    assert re.search(r" (1|2|4) \d+\n$", done.stdout)


@pytest.mark.process
def test_without_an_environment_activate_says_so(clone: Path, tmp_path: Path) -> None:
    shutil.copytree(clone / "tools", tmp_path / "tools", ignore=shutil.ignore_patterns("venv"))
    done = paste(tmp_path, "true")
    assert done.returncode == 1 and "there is no environment" in done.stderr and "install.sh" in done.stderr
    shutil.copytree(clone / "tools/venv", tmp_path / "tools/venv", ignore=shutil.ignore_patterns(".done.*"))
    done = paste(tmp_path, "true")
    assert done.returncode == 1 and "was not finished" in done.stderr and "install.sh" in done.stderr


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"\]\(([^):]+)\)|`((?:egs(?!/mine)|espnet_ee|tools/(?!venv))[\w/.-]+)`", README)))
)
def test_paths_exist(path: tuple[str, str]) -> None:
    assert (ROOT / (path[0] or path[1])).exists()


def test_the_numbers_are_those_of_the_results() -> None:
    """Of the first set of AN4's page, by row: error rate, MMACs/s and share of compute."""
    page = (ROOT / "egs/an4/asr1/RESULTS.md").read_text(encoding="utf-8").partition("\n## train_dev")[0]
    rows = {cells[1]: cells for cells in (line.split("|") for line in page.splitlines()) if len(cells) > 7}
    table = {cells[1].strip(): cells[2:4] for cells in (line.split("|") for line in README.splitlines()) if len(cells) == 5}
    for name, row in (("all 12 blocks", "exit 12"), ("**every utterance stops on its own**", "learned_wer_loss10")):
        macs, wer = next(cells for title, cells in table.items() if title.startswith(name))
        assert (macs.strip(), float(wer)) == (rows[row][5], round(float(rows[row][2].split()[0]), 1))
    own = (ROOT / "egs/an4/asr1/README.md").read_text(encoding="utf-8")
    row = next(line for line in own.splitlines() if line.startswith("| fast conformer")).strip("| ").split(" | ")
    assert row[1:] == [f"{cells[2].split()[0]} / {cells[5]}" for name, cells in rows.items() if re.match(r"exit \d", name)]
