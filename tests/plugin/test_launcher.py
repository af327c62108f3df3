"""``python -m espnet_ee``: stock commands see the plug-in; mistakes are one line, bugs keep their traceback."""

import subprocess
import sys
from functools import partial

import pytest
import yaml

from espnet_ee.__main__ import main
from espnet_ee.errors import run
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
        (["pyscripts/no_such_script.py"], "no such file"),
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


def test_a_recipes_script_runs_with_the_plug_in(tmp_path):
    """asr.sh starts ``${python} pyscripts/...``, too."""
    (tmp_path / "beside.py").write_text("WORD = 'beside'\n")
    (tmp_path / "script.py").write_text(
        "import sys\nfrom beside import WORD\nfrom espnet2.tasks.asr import encoder_choices\n"
        "print(__name__, sys.argv[1:], WORD, 'early_exit_conformer' in encoder_choices.classes)\n"
    )
    done = launch(str(tmp_path / "script.py"), "--a", "b")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "__main__ ['--a', 'b'] beside True"), done.stderr


def dry_run(tmp_path, launch=launch, **settings) -> subprocess.CompletedProcess:
    config = {**tiny.TRAINING, **settings}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "tokens.txt").write_text("".join(f"{token}\n" for token in tiny.TOKENS))
    return launch(
        "-m", "espnet2.bin.asr_train", "--config", str(tmp_path / "train.yaml"), "--iterator_type", "none",
        "--dry_run", "true", "--token_list", str(tmp_path / "tokens.txt"), "--token_type", "char",
        "--output_dir", str(tmp_path / "exp"), "--ngpu", "0",
    )  # fmt: skip


def test_a_stock_training_command_builds_the_model(tmp_path):
    done = dry_run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "EarlyExitASRModel" in done.stdout + done.stderr


CONF = tiny.TRAINING["encoder_conf"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"encoder_conf": {**CONF, "exit_layers": [1, 3]}}, ["encoder_conf", "exit layer 3"]),
        ({"encoder_conf": {**CONF, "lineer_units": 3}}, ["encoder_conf", "'lineer_units'"]),
        ({"frontend_conf": {"n_ftt": 512}}, ["n_ftt"]),
        ({"optim_conf": {"lrr": 0.1}}, ["optim_conf", "'lrr'"]),
        ({"optim_conf": {"lr": "fast"}}, ["optimizer"]),
        ({"scheduler": "warmuplr", "scheduler_conf": {"warmup": 3}}, ["scheduler_conf", "'warmup'"]),
    ],
    ids=str,
)
def test_a_wrong_configuration_is_one_line(tmp_path, monkeypatch, capsys, settings, words):
    done = dry_run(tmp_path, partial(launch_here, monkeypatch, capsys), **settings)
    assert done.returncode == 1
    assert all(word in done.stderr.splitlines()[-1] for word in words)
    assert "Traceback" not in done.stderr


def launch_here(monkeypatch, capsys, *arguments: str) -> subprocess.CompletedProcess:
    """As :func:`launch`, in this process: ESPnet takes seconds to import."""
    monkeypatch.setattr(sys, "argv", ["espnet_ee", *arguments])
    with pytest.raises(SystemExit) as stopped:
        run(main)
    return subprocess.CompletedProcess(arguments, stopped.value.code, *capsys.readouterr())


@pytest.mark.parametrize("where", ["training", "model"])
def test_a_bug_is_never_told_as_a_mistake_of_the_configuration(tmp_path, monkeypatch, capsys, where):
    """The words are those of a key that a class does not take; hours into a training they are ours, or ESPnet's."""

    def bug(*_: object, **__: object) -> None:
        raise TypeError("forward() got an unexpected keyword argument 'speech'")

    if where == "model":
        monkeypatch.setattr("espnet_ee.model.early_exit.make_heads", bug)
    else:
        monkeypatch.setattr("espnet2.tasks.abs_task.model_summary", bug)
    with pytest.raises(TypeError, match="'speech'"):
        dry_run(tmp_path, partial(launch_here, monkeypatch, capsys))


def test_the_cause_of_a_wrong_configuration_is_shown_when_asked_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ESPNET_EE_TRACEBACK", "1")
    done = dry_run(tmp_path, partial(launch_here, monkeypatch, capsys), encoder_conf={**CONF, "attention_heads": 0})
    assert "Traceback" in done.stderr and "error: configuration: " in done.stderr.splitlines()[-1]
