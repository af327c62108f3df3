"""Stage 10 in parts: what they are depends on the data alone, and together they are the whole."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.process

SCRIPT = """#!/usr/bin/env bash
set -euo pipefail
. {template}/utils/stage.sh
. {template}/utils/stages_train.sh
python=${{ESPNET_EE_PYTHON}} stats_run=("${{ESPNET_EE_PYTHON}}" fake.py)
data_feats=. train_set=train valid_dir=$3 feats_type=raw token_type=char token_list=tokens.txt ngpu=0 fs=16000 asr_config=
expdir=exp asr_stats_dir=stats extra_args=() nj=$1 stats_part=$2
if ! make_statistics; then echo failed; fi
"""

# Stands for ESPnet's asr_train: an utterance's shape and sum are its number.
FAKE = """import pathlib, sys, numpy
out = pathlib.Path(sys.argv[sys.argv.index("--output_dir") + 1])
for name in ("train", "valid"):
    keys = [line.split()[0] for line in open(sys.argv[sys.argv.index(f"--{name}_shape_file") + 1])]
    print("reads", name, *keys)
    if not keys:
        sys.exit("ESPnet takes no empty set")
    if pathlib.Path("broken").exists() and "u04" in keys:
        sys.exit("u04 is broken")
    (out / name).mkdir()
    for kind in ("speech", "text"):
        (out / name / f"{kind}_shape").write_text("".join(f"{key} {int(key[1:])}\\n" for key in keys))
    numpy.savez(out / name / "feats_stats.npz", count=len(keys), sum=numpy.array([sum(int(key[1:]) for key in keys)]))
    (out / name / "batch_keys").write_text("speech\\ntext\\n")
    (out / name / "stats_keys").write_text("feats\\n")
"""


@pytest.fixture
def statistics(bash, template, tmp_path: Path):
    """Runs stage 10 with so many processes and utterances a part; returns what it said and the shapes and sum it found."""
    (tmp_path / "fake.py").write_text(FAKE, encoding="utf-8")
    (tmp_path / "tokens.txt").write_text("<blank>\nA\nB\n", encoding="utf-8")
    for name, count in (("train", 11), ("valid", 4)):
        (tmp_path / name).mkdir()
        lines = "".join(f"u{number:02d} some.wav\n" for number in range(1, count + 1))
        (tmp_path / name / "wav.scp").write_text(lines, encoding="utf-8")

    def call(nj: int, part: int, valid: str = "valid"):
        result = bash(str(nj), str(part), valid, text=SCRIPT.format(template=template))
        made = tmp_path / "stats"
        files = {path.relative_to(made).as_posix(): path.read_bytes() for path in made.rglob("*") if path.is_file()}
        return result.stdout, files

    return call


@pytest.mark.parametrize("nj", [1, 3])
@pytest.mark.parametrize("part", [3, 10000])
def test_parts_add_up(statistics, nj: int, part: int, tmp_path: Path):
    said, files = statistics(nj, part)
    assert "failed" not in said
    for name, count in (("train", 11), ("valid", 4)):
        with np.load(tmp_path / "stats" / name / "feats_stats.npz") as stats:
            assert (int(stats["count"]), int(stats["sum"][0])) == (count, count * (count + 1) // 2)
        for kind, end in (("speech_shape", ""), ("text_shape.char", ",3")):
            expected = [f"u{number:02d} {number}{end}" for number in range(1, count + 1)]
            assert files[f"{name}/{kind}"].decode().splitlines() == expected
    assert sorted({path.split("/")[0] for path in files}) == [".stage10", "train", "valid"]
    assert not (tmp_path / "stats.tmp").exists()


def test_no_more_parts_than_the_development_set_has_utterances(statistics):
    """A part without an utterance would fail; see FAKE."""
    said, files = statistics(2, 1)
    assert "failed" not in said and files


def test_a_folder_with_an_equals_sign(statistics, tmp_path: Path):
    (tmp_path / "valid").rename(tmp_path / "x=1")
    said, files = statistics(1, 10000, "x=1")
    assert "failed" not in said and files["valid/speech_shape"].decode().splitlines() == [
        f"u{number:02d} {number}" for number in range(1, 5)
    ]


@pytest.mark.parametrize("nj", [1, 3])
def test_a_part_that_fails_fails_the_stage(statistics, nj: int, tmp_path: Path):
    (tmp_path / "broken").touch()
    said, files = statistics(nj, 3)
    assert "u04 is broken" in said and said.endswith("failed\n")
    assert not files


@pytest.fixture
def stage_10(bash, root: Path, tmp_path: Path):
    """Runs the recipe's stage 10 on a small set; FAKE stands for ESPnet's asr_train."""
    (tmp_path / "fake.py").write_text(FAKE, encoding="utf-8")
    for name in ("train", "dev"):
        (tmp_path / "dump" / "raw" / name).mkdir(parents=True)
        sounds = f"u01 {tmp_path}/fake.py\nu02 {tmp_path}/fake.py\n"  # that they are there is all that is asked
        (tmp_path / "dump" / "raw" / name / "wav.scp").write_text(sounds, encoding="utf-8")
        (tmp_path / "dump" / "raw" / name / "text").write_text("u01 GO\nu02 ON\n", encoding="utf-8")
    (tmp_path / "data" / "token_list" / "char").mkdir(parents=True)
    (tmp_path / "data" / "token_list" / "char" / "tokens.txt").write_text("<blank>\nA\nB\n", encoding="utf-8")
    folders = {"datadir": "data", "dumpdir": "dump", "expdir": "exp", "asr_stats_dir": "mine"}
    words = ("--stage=10", "--stop_stage=10", *(f"--{name}={tmp_path / folder}" for name, folder in folders.items()))
    script = str(root / "egs/mini/asr1/run.sh")
    return lambda *options: bash(script, *words, *options, data_cmd=f"{sys.executable} {tmp_path}/fake.py")


def test_a_folder_of_somebody_else_is_not_replaced(stage_10, tmp_path: Path):
    files = [tmp_path / "mine" / name for name in ("notes.txt", "train/feats_stats.npz")]
    (tmp_path / "mine" / "train").mkdir(parents=True)
    for path in files:
        path.write_text("precious", encoding="utf-8")
    result = stage_10()
    assert result.returncode == 2
    assert f"{tmp_path}/mine has no mark of stage 10" in result.stderr and result.stderr.count("\n") == 1
    assert all(path.read_text(encoding="utf-8") == "precious" for path in files)


def test_statistics_follow_what_the_configuration_says_of_preprocessing(stage_10, tmp_path: Path):
    config = tmp_path / "train.yaml"
    for content, said in (
        ("max_epoch: 1\n", "stage 10: statistics; log: "),
        ("max_epoch: 2\nnoise_scp: noise.scp\n", "done, skipped"),  # both of no effect on the statistics
        ("max_epoch: 2\nspeech_volume_normalize: 0.01\n", "done again"),
        ("max_epoch: 1\nspeech_volume_normalize: 0.01\n", "done, skipped"),
        ("speech_volume_normalize: 0.01\npreprocessor_conf: {force_single_channel: true}\n", "done again"),
    ):
        config.write_text(content, encoding="utf-8")
        result = stage_10("--asr_config", str(config))
        assert result.returncode == 0, result.stderr
        assert said in result.stdout, content


CLAIM = """#!/usr/bin/env bash
set -euo pipefail
. {template}/utils/parse_options.sh
. {template}/utils/stages_train.sh
asr_stats_dir=stats
claim_statistics
"""


@pytest.mark.parametrize(
    ("files", "status"),
    [
        ([], 0),
        ([".stage10", "valid/speech_shape"], 0),  # cut off while it was replaced
        ([".done", "wav.scp"], 2),  # a set or a decoding: marked, but no statistics
        (["train/speech_shape"], 2),  # ESPnet's own
        ([".stage10", ".done", "train/speech_shape", "asr_train/1epoch.pth"], 2),  # an experiment that was put into it
    ],
)
def test_what_stage_10_may_replace(bash, template, tmp_path: Path, files: list[str], status: int):
    for name in files:
        (tmp_path / "stats" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "stats" / name).touch()
    assert bash(text=CLAIM.format(template=template)).returncode == status
    # run_once removes the mark; what is cut off then must be replaceable, too.
    (tmp_path / "stats" / ".done").unlink(missing_ok=True)
    assert bash(text=CLAIM.format(template=template)).returncode == status


BPE = """#!/usr/bin/env bash
set -euo pipefail
. {template}/utils/stages_train.sh
data_feats=. train_set=train valid_dir=valid feats_type=raw token_type=bpe token_dir=tokens token_list=tokens/tokens.txt ngpu=0 fs=16000 asr_config=
set_common_args
printf '%s\\n' "${{common_args[@]}}"
"""


def test_another_bpe_model_of_stage_5_leaves_that_of_a_trained_model(bash, template, tmp_path: Path):
    named = []
    (tmp_path / "tokens").mkdir()
    for content in ("one", "two", "one"):
        (tmp_path / "tokens" / "bpe.model").write_text(content, encoding="utf-8")
        words = bash(text=BPE.format(template=template)).stdout.splitlines()
        named.append(tmp_path / words[words.index("--bpemodel") + 1])
    assert [path.read_text(encoding="utf-8") for path in named] == ["one", "two", "one"] and named[0] == named[2]
    assert {path.name for path in named} == {"bpe.model"}  # as a package is to call it
