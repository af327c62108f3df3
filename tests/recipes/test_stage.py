"""run_once: work is done once, again when its options or inputs changed, and leaves no mark when it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

SCRIPT = """#!/usr/bin/env bash
set -euo pipefail
. {template}/utils/stage.sh
work() {{ echo "working" && echo run >>ran && "$@"; }}
run_once "stage 9: work" mark "$(identity "$1" input)" work.log work "${{@:2}}"
echo reached
"""


@pytest.fixture
def run_once(bash, template, tmp_path: Path):
    """Calls run_once with an options string and a command; returns the result and how often the work ran so far."""
    (tmp_path / "input").write_text("one", encoding="utf-8")

    def call(options: str, *command: str):
        result = bash(options, *(command or ("true",)), text=SCRIPT.format(template=template))
        ran = tmp_path / "ran"
        return result, len(ran.read_text(encoding="utf-8").split()) if ran.exists() else 0

    return call


def test_done_work_is_skipped_and_nothing_is_touched(run_once, tmp_path: Path):
    result, times = run_once("a")
    assert times == 1 and "stage 9: work; log: work.log\n" in result.stdout
    before = {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir() if path.name != "script.sh"
    }
    result, times = run_once("a")
    after = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir() if path.name != "script.sh"}
    assert times == 1
    assert "stage 9: work: done, skipped" in result.stdout and "reached" in result.stdout
    assert before == after


def test_changed_options_or_inputs_are_done_again(run_once, tmp_path: Path):
    run_once("a")
    assert run_once("b")[1] == 2
    assert run_once("b")[1] == 2
    (tmp_path / "input").write_text("two", encoding="utf-8")
    assert run_once("b")[1] == 3
    (tmp_path / "input").unlink()
    result, times = run_once("b")
    assert times == 4 and "done again" in result.stdout


def test_failing_work_leaves_no_mark_and_shows_the_logs_end(run_once, tmp_path: Path):
    run_once("a")
    lines = "for i in $(seq 1 30); do echo line $i; done; echo the reason >&2; exit 7"
    result, times = run_once("b", "bash", "-c", lines)
    assert times == 2
    assert result.returncode == 7
    assert "reached" not in result.stdout
    assert not (tmp_path / "mark").exists()
    assert "line 12\n" in result.stderr and "line 11\n" not in result.stderr and "the reason" in result.stderr
    assert "stage 9: work failed with status 7; the full log is work.log" in result.stderr
    # Not even work that was once done with other options counts now.
    assert run_once("a")[1] == 3


def test_the_log_is_replaced_never_appended_to(run_once, tmp_path: Path):
    run_once("a", "echo", "first")
    run_once("b", "echo", "second")
    assert (tmp_path / "work.log").read_text(encoding="utf-8") == "working\nsecond\n"


PARALLEL = """#!/usr/bin/env bash
set -euo pipefail
. {template}/utils/stage.sh
job() {{ touch "started.$1"; [ "$1" != bad ]; touch "finished.$1"; }}
run_parallel {slots} job {jobs}
echo reached
"""


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_parallel_jobs_all_run(bash, template, tmp_path: Path, slots: int):
    result = bash(text=PARALLEL.format(template=template, slots=slots, jobs="a b c d"))
    assert "reached" in result.stdout
    assert {path.name for path in tmp_path.glob("finished.*")} == {f"finished.{name}" for name in "abcd"}


@pytest.mark.parametrize("slots", [1, 2])
def test_a_failing_parallel_job_fails_the_whole(bash, template, tmp_path: Path, slots: int):
    result = bash(text=PARALLEL.format(template=template, slots=slots, jobs="a bad c"))
    assert result.returncode != 0 and "reached" not in result.stdout
    assert not (tmp_path / "finished.bad").exists()


SHOWN = """#!/usr/bin/env bash
set -euo pipefail
. {template}/utils/stages_decode.sh
MAIN_ROOT=/nowhere command="./run.sh ${{*@Q}}"
shown_command
"""


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ([], "./run.sh"),
        (["--nj", "4", "--stage", "12", "--stop_stage=13"], "./run.sh --nj 4"),
        (["--note", "it's new", "--nj=4", "--note=x y"], "./run.sh --nj=4"),
        (
            ["--expdir", "it's $HOME; *", "--test_sets", "dev test"],
            "./run.sh --expdir 'it'\\''s $HOME; *' --test_sets 'dev test'",
        ),
        (["--speed_perturb_factors", "", "--nj", "1"], "./run.sh --speed_perturb_factors '' --nj 1"),
    ],
)
def test_the_shown_command_can_be_pasted(bash, template, words: list[str], shown: str):
    result = bash(*words, text=SHOWN.format(template=template))
    assert result.stdout == f"{shown}\n", result.stderr


ENDS = """#!/usr/bin/env bash
set -euo pipefail
. {template}/utils/parse_options.sh
. {template}/utils/stage.sh
{{
    trap explain_end EXIT
    lock_folder data datadir
    run_once "stage 9: work" mark "a" log/work.log "$@"
    echo reached
}}
"""
OBSTACLES = {
    "mark": ("mark.tmp", 'stopped by status 1 of: printf \'%s\\n\' "$2" > "$1.tmp" (mark_done)'),
    "lock": (".data.lock", "stopped by status 1 of: printf"),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_the_shell_cannot_write_is_one_line_that_says_so(bash, template, tmp_path: Path, obstacle: str):
    name, said = OBSTACLES[obstacle]
    (tmp_path / name).symlink_to("/dev/full")
    result = bash("true", text=ENDS.format(template=template))
    assert result.returncode == 1 and "reached" not in result.stdout
    *_, why, last = result.stderr.splitlines()
    assert "No space left on device" in why
    assert last.startswith(f"script.sh: error: {said}") and last.endswith("; what it said stands above")
    assert not (tmp_path / "mark").exists()


def test_a_failure_that_was_explained_is_explained_once(bash, template, tmp_path: Path):
    result = bash("false", text=ENDS.format(template=template))
    assert result.stderr.count("error:") == 1 and "; the full log is log/work.log" in result.stderr
    result = bash("true", text=ENDS.format(template=template).replace("run_once", 'usage_error "no"\nrun_once'))
    assert (result.returncode, result.stderr) == (2, "script.sh: error: no (--help lists the options)\n")
    assert bash("true", text=ENDS.format(template=template)).stderr == ""


DECODING = """#!/usr/bin/env bash
set -euo pipefail
for file in stage stages_data stages_decode; do . {template}/utils/${{file}}.sh; done
asr_exp=exp data_feats=dump valid_set=dev model_file=model use_lm=false batch_size="" num_threads="" inference_device=cpu
eval_sets=() inference_list=() calibration_words=() decode_run=() search_words=("$@")
need_model() {{ :; }}
stage_options() {{ :; }}
run_once() {{ printf '%s\\n' "$3"; }}
log() {{ :; }}
decode_sets
"""


def test_stage_12_is_done_again_when_a_file_of_the_search_changed(bash, template, tmp_path: Path):
    marks = []
    for lexicon in ("ONE", "TWO", "TWO"):
        (tmp_path / "words.txt").write_text(lexicon, encoding="utf-8")
        result = bash("kind=beam", "lexicon=words.txt", text=DECODING.format(template=template))
        assert result.returncode == 0, result.stderr
        marks.append(result.stdout)
    assert marks[0] != marks[1] == marks[2]
