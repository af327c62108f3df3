"""``python -m espnet_ee``: stock commands see the plug-in; mistakes are one line and status 2."""

import subprocess
import sys

import pytest
import yaml

from tests import tiny

pytestmark = pytest.mark.process


def launch(*arguments: str, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "espnet_ee", *arguments], capture_output=True, text=True, cwd=cwd, check=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage:"),
        (["-m", "os"], "only ESPnet's own commands"),
        (["-m", "espnet2.bin.no_such_command"], "no such module"),
    ],
)
def test_misuse(arguments, message):
    done = launch(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_is_no_mistake():
    done = launch("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python -m espnet_ee -m espnet2.bin.")


def dry_run(tmp_path, **encoder_conf) -> subprocess.CompletedProcess:
    config = {
        "encoder": "early_exit_conformer",
        "encoder_conf": {**tiny.CONFORMER, "exit_layers": [2, 4], **encoder_conf},
        "model": "early_exit",
        "model_conf": {"ctc_weight": 1.0},
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "tokens.txt").write_text("".join(f"{token}\n" for token in tiny.TOKENS))
    return launch(
        "-m", "espnet2.bin.asr_train", "--config", str(tmp_path / "train.yaml"), "--iterator_type", "none",
        "--dry_run", "true", "--token_list", str(tmp_path / "tokens.txt"), "--token_type", "char",
        "--output_dir", str(tmp_path / "exp"),
    )  # fmt: skip


def test_a_stock_training_command_builds_the_model(tmp_path):
    done = dry_run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "EarlyExitASRModel" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("encoder_conf", "message"),
    [
        ({"exit_layers": [2, 5]}, "exit layer 5 is beyond the last block"),
        ({"lineer_units": 3}, "unknown key 'lineer_units'"),
    ],
)
def test_a_wrong_configuration_is_one_line(tmp_path, encoder_conf, message):
    done = dry_run(tmp_path, **encoder_conf)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
