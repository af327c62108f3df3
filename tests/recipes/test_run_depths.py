"""local/run_depths.sh: every depth is a training of its own, and the model is that of the same exit, cut off above it."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
UTILS = ROOT / "egs" / "TEMPLATE" / "asr1" / "utils"
RECIPES = sorted(path.parent for path in ROOT.glob("egs/*/asr1/run.sh"))
CONFIG = ROOT / "egs" / "an4" / "asr1" / "conf" / "train_ee_fast_conformer.yaml"


def one_exit(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(UTILS / "one_exit.py"), *arguments]
    return subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)


def lines(*arguments: str) -> dict[int, tuple[str, list[str]]]:
    """By depth the model file and the words of --asr_args."""
    done = one_exit(*arguments)
    assert done.returncode == 0, done.stderr
    rows = (line.split("\t") for line in done.stdout.splitlines())
    return {int(depth): (model, words.split(" ")) for depth, words, model in rows}


def settings(config: Path, words: list[str], key: str = "encoder_conf") -> dict[str, Any]:
    """A part of the configuration with the words of the command line, as ESPnet reads them."""
    values = dict(yaml.safe_load(config.read_text(encoding="utf-8")).get(key, {}))
    for option, word in itertools.pairwise(words):
        if option == f"--{key}":
            name, _, value = word.partition("=")
            values[name] = yaml.safe_load(value)
    return values


def test_an_early_depth_has_no_half_rate_and_a_deeper_one_up_to_its_end() -> None:
    found = lines(str(CONFIG), "valid.cer_exit12.ave.pth", "")
    assert list(found) == [2, 4, 6, 8, 10, 12]
    half_rates = [settings(CONFIG, words)["half_rate"] for _, words in found.values()]
    assert half_rates == [[], [], [5, 6], [5, 8], [5, 10], [5, 10]]
    assert [model for model, _ in found.values()] == [f"valid.cer_exit{depth:02d}.ave.pth" for depth in found]
    for depth, (_, words) in found.items():
        assert words[words.index("--best_model_criterion") + 1] == f"valid,cer_exit{depth:02d},min"


@pytest.mark.parametrize("name", ["train_ee_fast_conformer", "train_ee_conformer"])
def test_a_depth_costs_what_the_exit_of_this_depth_costs(name: str) -> None:
    from espnet_ee.plugin.classes import ENCODERS

    path = CONFIG.with_stem(name)
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    make, bands = ENCODERS[config["encoder"]], config["frontend_conf"]["n_mels"]
    joint = make(bands, **config["encoder_conf"])
    for depth, (_, words) in lines(str(path), "valid.loss.ave.pth", "2 6 12").items():
        single = make(bands, **settings(path, words))
        assert single.exit_layers == (depth,)
        cost, joint_cost = (encoder.macs().encoder_macs(depth, 500) for encoder in (single, joint))
        # All exits at half rate that are passed cost the joint model a linear layer each.
        assert 0.99 * joint_cost < cost <= joint_cost


def test_the_default_model_file_follows_from_the_depth_by_itself() -> None:
    ((model, words),) = lines(str(CONFIG), "", "4").values()
    assert model == "" and "valid,cer_exit04,min" in words


def test_what_only_several_exits_can_have_goes(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    model = {"exit_weights": [1.0, 2.0], "exit_terms": {"ctc": 1.0, "span_distillation": {"weight": 0.1, "after": 5}}}
    path.write_text(yaml.safe_dump({"encoder_conf": {"num_blocks": 4, "exit_layers": [2, 4]}, "model_conf": model}))
    ((_, words),) = lines(str(path), "valid.loss.ave.pth", "2", "--max_epoch", "3").values()
    assert words[:2] == ["--max_epoch", "3"] and "--best_model_criterion" not in words
    assert settings(path, words, "model_conf") == {"exit_weights": "sum", "exit_terms": {"ctc": 1.0}}


@pytest.mark.parametrize(
    ("depths", "words", "said"),
    [
        ("2 14", [], "--depths: 14 is no number of a block of {config} (12 blocks)"),
        ("0", [], "--depths: 0 is no number"),
        ("two", [], "--depths: two is no number"),
        ("8", ["--encoder_conf", "num_blocks=6"], "--depths: 8 is no number of a block of {config} (6 blocks)"),
    ],
)
def test_a_depth_that_is_none_is_one_line(depths: str, words: list[str], said: str) -> None:
    done = one_exit(str(CONFIG), "model.pth", depths, *words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("run_depths: error: " + said.format(config=CONFIG))


RUN = """#!/usr/bin/env bash
set -euo pipefail
cd "$(dirname "$0")"
case " $* " in
    *" --settings "* | *" --show_exp true "*)
        exec ./asr_ee.sh --train_set t --valid_set d --test_sets d --asr_config conf/train.yaml \\
            --inference_asr_model valid.cer_exit04.ave.pth "$@" ;;
esac
printf '%s\\n' "$*" >>calls
"""


@pytest.mark.process
def test_every_depth_is_a_run_of_the_recipe_with_an_experiment_of_its_own(bash, template: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "egs" / "x" / "asr1"
    (recipe / "conf").mkdir(parents=True)
    (recipe / "local").mkdir()
    for name in ("asr_ee.sh", "cmd.sh", "path.sh", "db.sh", "utils", "local/run_depths.sh"):
        (recipe / name).symlink_to(template / name)
    (recipe / "local" / "data.sh").write_text('# begin options\nx_root="" # [1 X] the corpus\n# end options\n')
    (recipe / "conf" / "train.yaml").write_text("encoder_conf: {num_blocks: 4, exit_layers: [2, 4], half_rate: [3, 4]}\n")
    (recipe / "run.sh").write_text(RUN)
    (recipe / "run.sh").chmod(0o755)
    options = ("--x_root", "/corpora/x y", "--asr_args", "--max_epoch 3", "--seed", "5")
    result = bash(str(recipe / "local" / "run_depths.sh"), *options, "--depths", "2 4")
    assert result.returncode == 0, result.stderr
    calls = (recipe / "calls").read_text().splitlines()
    exp = "exp/asr_train_raw_char_seed5"
    for call, depth, half in zip(calls, (2, 4), ("[]", "[3,4]"), strict=True):
        assert call == (
            f"--x_root=/corpora/x y --asr_args=--max_epoch 3 --seed=5 --asr_exp {exp}_depth{depth} "
            f"--asr_args --max_epoch 3 --encoder_conf num_blocks={depth} --encoder_conf exit_layers=[{depth}] "
            f"--encoder_conf half_rate={half} --inference_asr_model valid.cer_exit0{depth}.ave.pth"
        )
    assert f'--separate_exps "{exp}_depth2 {exp}_depth4"' in result.stdout
    wrong = bash(str(recipe / "local" / "run_depths.sh"), "--no_option", "1")
    assert wrong.returncode == 2 and wrong.stderr.startswith("run_depths.sh: error: unknown option '--no_option'")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.parent.name)
def test_every_recipe_has_the_script(recipe: Path, template: Path) -> None:
    assert (recipe / "local" / "run_depths.sh").resolve() == template / "local" / "run_depths.sh"
