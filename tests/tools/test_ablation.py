"""tools/ablation.py: the table of experiments, and the files of rows that recipes bring along."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from espnet_ee.errors import UsageError, UserError

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "egs" / "mini" / "asr1"


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ablation", ROOT / "tools" / "ablation.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


def write_plan(folder: Path, text: str) -> Path:
    path = folder / "asr1" / "local" / "ablation.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_the_table_is_made_of_the_rows_that_were_scored(ablation: ModuleType, tmp_path: Path) -> None:
    path = write_plan(tmp_path, "note: Why.\nexpdir: exp_a\nrows:\n  one: {asr_config: c.yaml}\n  two: {asr_config: c.yaml}\n")
    exp = tmp_path / "asr1" / "exp_a" / "asr_two"
    exp.mkdir(parents=True)
    for name in ("exits.csv", "RESULTS.md"):
        shutil.copy(PAGES / name, exp)
    (exp / "config.yaml").write_text("max_epoch: 16\n", encoding="utf-8")
    (exp / "train.log").write_text("x 9epoch results: y\nx 10epoch results: y\n", encoding="utf-8")
    out = ablation.write_table(ablation.read_plan(path, [], []), ["local/ablation.yaml"])
    lines = out.read_text(encoding="utf-8").splitlines()
    page = (PAGES / "RESULTS.md").read_text(encoding="utf-8").splitlines()
    wers = [line.split("|")[2] for line in page if re.match(r"\|exit \d", line)][:4]  # of the test set, exits 2 to 8
    [row, _] = [line for line in lines if line.startswith("|two|825,")]
    assert [cell.partition(" / ")[0] for cell in row.split("|")[3:7]] == wers
    assert not any(line.startswith("|one|") for line in lines)
    assert any(line.startswith("|two|`asr_config: c.yaml`|10 of 16|") for line in lines)
    assert "Why." in lines and any("git hash" in line for line in lines)


def test_a_command_has_the_options_of_all_rows_then_its_own(ablation: ModuleType, tmp_path: Path) -> None:
    path = write_plan(tmp_path, 'options: [--nbpe, 5]\nrows:\n  one: {nbpe: 7, asr_args: "--a b --c d"}\n')
    plan = ablation.read_plan(path, [], ["--root", "x y"])
    words = plan.command(plan.rows["one"], "--stage", "11")
    assert words[1:] == [
        *("--expdir", str(tmp_path / "asr1" / "exp"), "--nbpe", "5", "--root", "x y"),
        *("--nbpe", "7", "--asr_args", "--a b --c d", "--stage", "11"),
    ]


def test_what_is_no_file_of_rows_is_one_line(ablation: ModuleType, tmp_path: Path) -> None:
    path = write_plan(tmp_path, "rows:\n  one: {asr_conf: c.yaml}\n")
    with pytest.raises(UserError, match="asr_config"):
        ablation.read_plan(path, [], [])
    path.write_text("rows:\n  one: {asr_config: c.yaml}\n", encoding="utf-8")
    with pytest.raises(UsageError, match="two.*one"):
        ablation.read_plan(path, ["two"], [])
    with pytest.raises(UserError, match="no row"):
        ablation.write_table(ablation.read_plan(path, [], []), [])


@pytest.mark.parametrize("path", sorted(ROOT.glob("egs/*/asr1/local/ablation*.yaml")), ids=lambda path: path.parts[-4])
def test_the_recipes_rows_name_configurations_that_are_there(ablation: ModuleType, path: Path) -> None:
    plan = ablation.read_plan(path, [], [])
    assert plan.rows and plan.note
    for row in plan.rows.values():
        assert (plan.recipe / row["asr_config"]).is_file()
