"""What is done again, and what is not: identities follow from what is in data and settings, not from how they are written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PIPELINE = ROOT / "egs" / "TEMPLATE" / "asr1" / "asr_ee.sh"
DATA_SCRIPTS = sorted(ROOT.glob("egs/*/asr1/local/data.sh"))
DECLARED = re.compile(r"([a-z][a-z0-9_]*)=(.*\S|)\s+# \[(-|\d+\*?(?: \d+\*?)*(?: [A-Z][A-Z0-9]*)?)\] \S.*")


def options(script: Path) -> list[str]:
    return script.read_text(encoding="utf-8").split("# begin options\n")[1].split("# end options")[0].splitlines()


@pytest.mark.parametrize("script", [PIPELINE, *DATA_SCRIPTS], ids=lambda path: path.parents[1 + (path.name == "data.sh")].name)
def test_every_option_says_which_stages_it_changes(script: Path) -> None:
    assert options(script)
    for line in options(script):
        assert DECLARED.fullmatch(line), line
        stages = re.findall(r"\d+", DECLARED.fullmatch(line)[3])
        assert set(map(int, stages)) <= {1, 2, 3, 4, 5, 9, 10, 11, 12, 13, 14, 15}, line


def test_every_starred_option_is_read_where_its_stages_are() -> None:
    """A star says that the stage has a form of its own for the option: then some line of the pipeline takes its value."""
    code = "".join(path.read_text(encoding="utf-8") for path in PIPELINE.parent.glob("utils/stages_*.sh"))
    code += PIPELINE.read_text(encoding="utf-8").split("# end options")[1]
    for line in options(PIPELINE):
        name, _, stages = DECLARED.fullmatch(line).groups()
        assert "*" not in stages or f"${{{name}" in code, name


def test_no_function_hides_an_option() -> None:
    """A stage's identity is read inside its function: a local of the same name would stand there instead of the option."""
    names = {DECLARED.fullmatch(line)[1] for line in options(PIPELINE)}
    for path in [PIPELINE, *PIPELINE.parent.glob("utils/*.sh")]:
        for words in re.findall(r"^ *local (.*)", path.read_text(encoding="utf-8"), re.M):
            hidden = names & set(re.findall(r"(?:^| )([a-z_0-9]+)(?==| |$)", words))
            assert not hidden, f"{path.name}: {words}"


STAGES = """#!/usr/bin/env bash
set -euo pipefail
# begin options
{options}
# end options
. {template}/utils/parse_options.sh
parse_options "$@"
for stage in 1 2 3 4 5 9 10 11 12 13 14 15; do stage_options "$stage" | sed "s/^/$stage /"; done
"""


@pytest.fixture
def words(bash, template: Path):
    """The lines of all stages that follow from a command line."""
    text = STAGES.format(options="\n".join(options(PIPELINE)), template=template)
    return lambda *arguments: set(bash(*arguments, text=text).stdout.splitlines())


def test_an_option_changes_the_stages_that_it_declares(words) -> None:
    before = words()
    for line in options(PIPELINE):
        name, _, stages = DECLARED.fullmatch(line).groups()
        changed = {entry.split()[0] for entry in words(f"--{name}", "another value") - before}
        assert changed == set(re.findall(r"(?<!\S)\d+(?!\S)", stages)), name


def test_blanks_in_a_list_do_not_count(words) -> None:
    assert words("--calibrate_targets", "a b") == words("--calibrate_targets", " a   b ") != words("--calibrate_targets", "ab")


SETTINGS = """#!/usr/bin/env bash
set -euo pipefail
# begin options
datadir=data  # [-] where to
hold_out=0    # [1] how many
an4_root=""   # [1 2 3 AN4] the corpus
# end options
. {template}/utils/parse_options.sh
parse_options "$@"
echo not reached
"""


def test_settings_of_a_corpus_hold_its_place_however_it_is_named(bash, template: Path, tmp_path: Path) -> None:
    text = SETTINGS.format(template=template)
    wanted = f"[1] hold_out=0\n[1 2 3] an4_root={tmp_path}/an4\n"
    for arguments, environment in (
        (["--an4_root", f"{tmp_path}/an4"], {}),
        (["--an4_root", f"{tmp_path}/an4//"], {}),
        (["--an4_root", "x/../an4"], {}),
        ([], {"AN4": f"{tmp_path}/an4/"}),
        (["--an4_root", "an4", "--datadir", "elsewhere"], {"AN4": "other"}),
    ):
        assert bash(*arguments, "--settings", text=text, **environment).stdout == wanted
    assert bash("--settings", text=text, AN4="").stdout == "[1] hold_out=0\n[1 2 3] an4_root=\n"


def lines(config: Path, *arguments: str, rate: int = 16000) -> list[str]:
    script = PIPELINE.parent / "utils" / "identity.py"
    done = subprocess.run(
        [sys.executable, str(script), str(rate), "global_mvn", str(config), *arguments],
        env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


FRONTEND, STATISTICS, TRAINING, MAY_CHANGE, FRAMES, CHOSEN_BY, NAME = range(7)


@pytest.fixture
def config(tmp_path: Path):
    """Writes a training configuration; returns its path."""
    path = tmp_path / "train.yaml"

    def write(text: str) -> Path:
        path.write_text(text, encoding="utf-8")
        return path

    return write


PLAIN = "encoder: x\nfrontend_conf: {n_mels: 80}\noptim_conf: {lr: 2.0e-3}\nmax_epoch: 3\n"


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("# a remark\n" + PLAIN, []),
        ("max_epoch: 3\noptim_conf:\n    lr: 0.002\nfrontend_conf:\n    n_mels: 80\nencoder: 'x'\n", []),
        (PLAIN + "num_workers: 4\nlog_interval: 10\nuse_tensorboard: false\n", []),
        (PLAIN.replace("max_epoch: 3", "max_epoch: 4"), [MAY_CHANGE]),
        (PLAIN + "batch_bins: 100\naccum_grad: 2\n", [MAY_CHANGE]),
        (PLAIN.replace("2.0e-3", "1.0e-3"), [TRAINING]),
        (PLAIN.replace("n_mels: 80", "n_mels: 40"), [FRONTEND, STATISTICS, TRAINING]),
        (PLAIN + "speech_volume_normalize: 0.1\n", [STATISTICS, TRAINING]),
        (PLAIN + "specaug: specaug\n", [TRAINING]),
        (PLAIN + "1: {2: a, b: [{? ~ : c, 3: d}]}\n", [TRAINING]),
    ],
)
def test_what_a_configuration_changes(config, text: str, changes: list[int]) -> None:
    before, after = lines(config(PLAIN)), lines(config(text))
    assert [number for number in range(4) if before[number] != after[number]] == changes


@pytest.mark.parametrize(
    ("words", "changes", "name"),
    [
        (["--max_epoch", "9"], [MAY_CHANGE], ""),
        (["--max_epoch=9", "--num_workers", "0"], [MAY_CHANGE], ""),
        (["--num_workers", "0"], [], ""),
        (["--optim_conf", "lr=1.0"], [TRAINING], "--optim_conf lr=1.0"),
        (
            ["--frontend_conf", "n_mels=40", "--batch_bins", "5"],
            [STATISTICS, TRAINING, MAY_CHANGE],
            "--frontend_conf n_mels=40",
        ),
        (["--init_param", "a", "b"], [TRAINING], "--init_param a b"),
    ],
)
def test_what_further_options_change(config, words: list[str], changes: list[int], name: str) -> None:
    before, after = lines(config(PLAIN)), lines(config(PLAIN), *words)
    assert [number for number in range(4) if before[number] != after[number]] == changes
    assert [*after, ""][NAME] == name


def test_an_option_counts_before_the_configuration(config) -> None:
    path = config(PLAIN)
    assert json.loads(lines(path)[FRAMES])["encoder"] == "x"
    words = ("--encoder", "y", "--encoder_conf", "subsampling=8", "--encoder_conf=input_layer=conv2d6")
    frames = json.loads(lines(path, *words)[FRAMES])
    assert (frames["encoder"], frames["encoder_conf"]) == ("y", {"subsampling": 8, "input_layer": "conv2d6"})
    assert frames["frontend_conf"] == {"fs": 16000, "n_mels": 80}
    assert json.loads(lines(path, "--max_epoch", "9")[MAY_CHANGE]) == {"max_epoch": 9}


@pytest.mark.parametrize(
    ("text", "words", "names"),
    [
        (PLAIN, [], "valid.loss train.loss"),
        (PLAIN + "best_model_criterion: [[train, acc, max], [valid, cer_exit12, min], [valid, loss, min]]\n", [],
            "valid.cer_exit12 valid.loss train.acc"),
        (PLAIN + "best_model_criterion: [[valid, loss, min]]\n", ["--best_model_criterion", "valid,acc,max", "train,loss,min"],
            "valid.acc train.loss"),
    ],
)  # fmt: skip
def test_the_model_to_decode_with_is_what_the_training_chooses(config, text: str, words: list[str], names: str) -> None:
    assert lines(config(text), *words)[CHOSEN_BY] == names


def test_a_pretrained_encoder_wants_the_rate_that_it_was_trained_on(config) -> None:
    path = config("encoder: early_exit_hf\ninput_size: 1\n")
    assert lines(path)
    with pytest.raises(subprocess.CalledProcessError) as refusal:
        lines(path, rate=8000)
    assert refusal.value.returncode == 2
    assert (
        refusal.value.stderr
        == f"asr_ee: error: {path}: encoder: early_exit_hf was trained on 16000 Hz: give --fs 16000, not 8000\n"
    )


TRAIN = """#!/usr/bin/env bash
set -euo pipefail
. {template}/utils/parse_options.sh
. {template}/utils/stage.sh
. {template}/utils/stages_data.sh
. {template}/utils/stages_train.sh
need() {{ :; }}
need_statistics() {{ :; }}
feats_type=raw model_file=exp/asr/model inference_asr_model=${{4:-valid.loss.ave.pth}} chosen_by=(valid.loss)
stage_options() {{ echo "seed=$seed"; }}
run_training() {{ echo "trains, resumed: $1"; echo epoch >>"$asr_exp/model"; [ ! -e crash ]; }}
asr_exp=exp/asr asr_stats_dir=exp/stats data_feats=dump train_set=train valid_set=dev token_list=tokens fly_factors=""
seed=$1 training_config=$2 may_change=$3
train_model
"""


@pytest.fixture
def train(bash, template: Path, tmp_path: Path):
    """Stage 11 with a stand-in for the training: seed, configuration, what may change."""
    for name in ("train", "dev"):
        (tmp_path / "dump" / name).mkdir(parents=True)
        for table in (".content", "text", "utt2spk", "wav.scp"):
            (tmp_path / "dump" / name / table).write_text(f"u {table}\n", encoding="utf-8")
    for sound in ("wav.scp", "moved"):  # the sounds that wav.scp names
        (tmp_path / sound).touch()
    (tmp_path / "exp" / "asr").mkdir(parents=True)
    (tmp_path / "exp" / "asr").rmdir()

    def call(seed: str = "", config: str = "{}", may_change: str = "{}") -> subprocess.CompletedProcess[str]:
        return bash(seed, config, may_change, text=TRAIN.format(template=template))

    return call


def test_a_training_goes_on_with_more_epochs_and_other_batches(train, tmp_path: Path) -> None:
    assert "trains, resumed: false" in train(may_change='{"max_epoch": 2}').stdout
    assert "done, skipped" in train(may_change='{"max_epoch": 2}').stdout
    assert "trains, resumed: true" in train(may_change='{"batch_bins": 7, "max_epoch": 3}').stdout
    fewer = train(may_change='{"max_epoch": 2}')
    assert fewer.returncode == 2 and "was trained for 3 epochs" in fewer.stderr
    assert (tmp_path / "exp/asr/model").read_text() == "epoch\nepoch\n"
    assert [path.name for path in (tmp_path / "exp").iterdir()] == ["asr"]


def test_a_model_that_the_training_will_not_make_is_said_before_it(bash, train, template: Path, tmp_path: Path) -> None:
    for name, status in (
        ("valid.acc.ave.pth", 2),
        ("train.loss.best.pth", 2),
        ("valid.loss.ave_5best.pth", 0),
        ("mine.pth", 0),
    ):
        result = bash("", "{}", "{}", name, text=TRAIN.format(template=template))
        assert result.returncode == status, name
        assert (f"the training makes no {name}; it chooses by valid.loss" in result.stderr) == (status == 2)
        assert (tmp_path / "exp/asr").exists() == (status == 0)


def test_another_training_leaves_the_old_one(train, tmp_path: Path) -> None:
    train()
    assert "trains, resumed: false" in train(config='{"lr": 1}').stdout
    assert "trains, resumed: false" in train(config='{"lr": 1}', seed="2").stdout
    assert sorted(path.name for path in (tmp_path / "exp").iterdir()) == ["asr", "asr.old1", "asr.old2"]


def test_a_crash_is_gone_on_with_other_batches(train, tmp_path: Path) -> None:
    (tmp_path / "crash").touch()
    assert train(may_change='{"batch_bins": 9}').returncode == 1
    (tmp_path / "crash").unlink()
    assert "trains, resumed: true" in train(may_change='{"batch_bins": 5}').stdout


def test_a_training_is_of_what_sounds_and_not_of_where_it_lies(train, tmp_path: Path) -> None:
    train()
    (tmp_path / "dump/train/wav.scp").write_text("u moved\n", encoding="utf-8")
    assert "done, skipped" in train().stdout
    (tmp_path / "dump/train/.content").write_text("u other\n", encoding="utf-8")
    assert "trains, resumed: false" in train().stdout


LOCK = """#!/usr/bin/env bash
set -euo pipefail
. {template}/utils/stage.sh
lock_folder "$1" datadir
echo locked
{work}
"""


def test_a_second_run_into_a_folder_is_refused_until_the_first_ends(bash, template: Path, tmp_path: Path) -> None:
    holder = tmp_path / "holder.sh"
    holder.write_text(LOCK.format(template=template, work="sleep 60"), encoding="utf-8")
    first = subprocess.Popen(
        ["bash", str(holder), "some/data"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert first.stdout is not None and first.stdout.readline() == "locked\n"
    text = LOCK.format(template=template, work="unlock_folders")
    second = bash("some/data", text=text, ESPNET_EE_LOCK_SECONDS="0")
    assert second.returncode == 1 and second.stdout == "" and second.stderr.count("\n") == 1
    assert f"some/data is in use by process {first.pid} on " in second.stderr and "'--datadir'" in second.stderr
    assert bash("some/other", text=text, ESPNET_EE_LOCK_SECONDS="0").stdout == "locked\n"

    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert bash("some/data", text=text).stdout == "locked\n"


def test_a_file_system_without_locks_is_no_second_run(bash, template: Path, tmp_path: Path) -> None:
    """As flock ends on Lustre without its mount option, on some NFS."""
    (tmp_path / "flock").write_text("#!/bin/sh\necho 'flock: 10: Function not implemented' >&2\nexit 65\n", encoding="utf-8")
    (tmp_path / "flock").chmod(0o755)
    text = LOCK.format(template=template, work="unlock_folders")
    result = bash("some/data", text=text, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == 0 and result.stdout == "locked\n"
    assert result.stderr == (
        "script.sh: warning: some/data cannot be locked, so nothing keeps a second run out of it: start none "
        "(its file system has no locks? flock: 10: Function not implemented)\n"
    )
