"""local/run_comparison.sh: which models it makes, with which options, and what becomes of those that are not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from espnet_ee.score.points import Point, write_exits
from espnet_ee.score.wer import ErrorCounts

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(path.parent for path in ROOT.glob("egs/*/asr1/run.sh"))

# Stands in for a recipe: what would be trained is noted, and its scores are lying ready.
RUN = """#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "$0")"
run() { ./asr_ee.sh --train_set t --valid_set dev --test_sets "test dev" --asr_config conf/train_x.yaml "$@"; }
case " $* " in *" --settings "* | *" --show_exp true "*) run "$@"; exit ;; esac
exp=$(run "$@" --show_exp true)
echo "${exp}" >>trained
[[ ${exp} != *bad* ]] || exit 3
depth=${exp##*_depth}
if [ "${depth}" = "${exp}" ]; then depth=all; fi
if [[ " $* " == *" --batch_size 7 "* ]]; then depth=other; fi
kept=$(sed -n 's/.*--results_dir \\([^ ]*\\).*/\\1/p' <<<"$*")
for folder in "${exp}" ${kept}; do
    mkdir -p "${folder}"
    cp "exits_${depth}.csv" "${folder}/exits.csv"
done
"""
COLUMNS = """# NAME | TITLE | OPTIONS

ee     | EE           |
single | one exit     |
bad    | a failure    | --asr_config conf/train_bad.yaml --seed 3
aed    | AED          | --asr_config conf/train_aed.yaml
other  | otherwise    | --batch_size 7
quoted | in words     | --asr_args "--optim sgd" --seed '6'
open   | no end       | --asr_args "--optim sgd --seed 6
"""


QUOTED = "exp/asr_train_x_raw_char_optimsgd_seed6"


def points(layers: dict[int, int]) -> list[Point]:
    """Of both sets, with so many errors of ten words at every exit."""
    return [
        Point(
            name, "fixed", f"exit {layer}", ErrorCounts(2, 10, 10 - wrong, wrong), ErrorCounts(), layer, layer * 1e6, 0.0, 50.0
        )
        for name in ("test", "dev")
        for layer, wrong in layers.items()
    ]


@pytest.fixture
def recipe(template: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "egs" / "x" / "asr1"
    (folder / "conf").mkdir(parents=True)
    (folder / "local").mkdir()
    for name in ("asr_ee.sh", "cmd.sh", "db.sh", "utils", "local/run_depths.sh", "local/run_comparison.sh"):
        (folder / name).symlink_to(template / name)
    (folder / "path.sh").write_text(f'export PYTHONPATH="{ROOT}"\n')
    (folder / "local" / "data.sh").write_text("# begin options\n# end options\n")
    (folder / "local" / "comparison.txt").write_text(COLUMNS)
    for name in ("x", "bad"):
        (folder / "conf" / f"train_{name}.yaml").write_text("encoder_conf: {num_blocks: 4, exit_layers: [2, 4]}\n")
    (folder / "run.sh").write_text(RUN)
    (folder / "run.sh").chmod(0o755)
    write_exits(folder / "exits_all.csv", points({2: 4, 4: 1}))
    write_exits(folder / "exits_other.csv", points({2: 2, 4: 0}))
    write_exits(folder / "exits_2.csv", points({2: 3}))
    write_exits(folder / "exits_4.csv", points({4: 2}))
    return folder


@pytest.mark.process
def test_models_are_made_and_set_side_by_side(bash, recipe: Path) -> None:
    result = bash(str(recipe / "local" / "run_comparison.sh"), "--seed", "5", "--models", "ee single bad aed other quoted")
    assert result.returncode == 1, "a run has failed"
    assert "run_comparison.sh: error: a failure: its run failed" in result.stderr
    trained = (recipe / "trained").read_text().split()
    ee = "exp/asr_train_x_raw_char_seed5"
    assert trained == [ee, f"{ee}_depth2", f"{ee}_depth4", "exp/asr_train_bad_raw_char_seed3", ee, QUOTED]
    page = (recipe / "exp" / "COMPARISON.md").read_text(encoding="utf-8")
    for line in (
        "|2|40.00 [0.00, 50.00]|2.0|30.00 [0.00, 50.00]|2.0|20.00 [0.00, 50.00]|2.0|40.00 [0.00, 50.00]|2.0|",
        "|4|10.00 [0.00, 50.00]|4.0|20.00 [0.00, 50.00]|4.0|0.00 [0.00, 50.00]|4.0|10.00 [0.00, 50.00]|4.0|",
        "- AED: this recipe has no conf/train_aed.yaml",
        "- a failure: exp/asr_train_bad_raw_char_seed3 has no exits.csv: not trained or not scored",
        "- command: `local/run_comparison.sh --seed 5 --models ee\\ single\\ bad\\ aed\\ other\\ quoted`",
    ):
        assert page.splitlines().count(line) == (2 if line.startswith("|") else 1), line
    assert page.index("## test (") < page.index("## dev (")
    assert (recipe / "exp" / "comparison.png").is_file()


@pytest.mark.process
def test_what_has_been_scored_is_taken_and_nothing_trained(bash, recipe: Path) -> None:
    for name in ("a", "b2"):
        write_exits(recipe / "kept" / name / "exits.csv", points({2: 5} if name == "b2" else {2: 1, 4: 0}))
    arguments = ("--models", "joint=kept/a alone=kept/b2,kept/b4 single", "--depths", "4", "--train", "false", "--out", "kept")
    result = bash(str(recipe / "local" / "run_comparison.sh"), *arguments)
    assert result.returncode == 0, result.stderr
    assert not (recipe / "trained").exists()
    page = (recipe / "kept" / "COMPARISON.md").read_text(encoding="utf-8")
    assert "|2|10.00 [0.00, 50.00]|2.0|50.00 [0.00, 50.00]|2.0|" in page
    assert [line for line in page.splitlines() if "no exits.csv" in line] == [
        "- alone: kept/b4 has no exits.csv: not trained or not scored",
        "- one exit: exp/asr_train_x_raw_char_depth4 has no exits.csv: not trained or not scored",
    ]


@pytest.mark.process
def test_an_unknown_model_is_one_line(bash, recipe: Path) -> None:
    result = bash(str(recipe / "local" / "run_comparison.sh"), "--models", "eee")
    assert result.returncode == 2 and not (recipe / "trained").exists()
    said = "run_comparison.sh: error: option '--models': 'eee' is none of ee single bad aed other quoted open, and no NAME=EXPERIMENT"
    assert result.stderr.splitlines() == [f"{said} (--help lists the options)"]


@pytest.mark.process
def test_a_quote_that_does_not_end_is_one_line(bash, recipe: Path) -> None:
    result = bash(str(recipe / "local" / "run_comparison.sh"), "--models", "open")
    assert result.returncode == 2 and not (recipe / "trained").exists()
    said = "run_comparison.sh: error: local/comparison.txt: open: a quote is opened and not closed: "
    assert [line[: len(said)] for line in result.stderr.splitlines()] == [said]


@pytest.mark.parametrize("recipe_folder", RECIPES, ids=lambda path: path.parent.name)
def test_every_recipe_has_the_script_and_its_columns(recipe_folder: Path, template: Path) -> None:
    assert (recipe_folder / "local" / "run_comparison.sh").resolve() == template / "local" / "run_comparison.sh"
    lines = (recipe_folder / "local" / "comparison.txt").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if not line.startswith("#")]
    assert [row[0] for row in rows][:2] == ["ee", "single"]
    assert all(len(row) == 3 and row[1] and "=" not in row[1] for row in rows)
