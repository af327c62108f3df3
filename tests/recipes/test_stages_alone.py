"""Stages that are started alone: none works on what an earlier one would make anew, and none makes over what is somebody's own."""

from __future__ import annotations

from pathlib import Path

import pytest

CURRENT = """#!/usr/bin/env bash
set -euo pipefail
. {template}/utils/stage.sh
. {template}/utils/stages_data.sh
. {template}/utils/stages_decode.sh
need() {{ :; }}
data_feats=dump datadir=data feats_type=raw fs=${{2:-16000}} raw_train=train train_set=train_sp eval_sets=(dev) asr_exp=exp model_file=none
stored_factors=${{3:-0.9 1.0}}
work() {{
    local files
    readarray -t files < <(data_files data/train)
    mark_done data/train_sp/.done "$(identity "factors=0.9 1.0" "${{files[@]}}")"
    for name in train_sp dev; do
        readarray -t files < <(data_files "data/${{name}}")
        mark_done "$(formatted_dir "${{name}}")/.done" "$(identity "fs=16000" "${{files[@]}}")"
    done
    readarray -t files < <(data_files dump/org/train_sp)
    mark_done dump/train_sp/.done "$(identity "max_wav_duration=20" "${{files[@]}}")"
    readarray -t files < <(content_files dump/dev)
    mark_done exp/.stage12.done "$(identity "beam_size=10" "${{files[@]}}")"
}}
case $1 in
    work) work ;;
    2) need_speeds ;;
    3) need_formatted train_sp dev ;;
    4) need_filtered ;;
    12) need_decoding ;;
esac
"""


@pytest.mark.parametrize(
    ("changed", "fails"),
    [
        (None, {}),
        ("data/train/text", {"2": "2"}),
        ("data/train_sp/utt2spk", {"3": "3", "12": ""}),
        ("data/dev/text", {"3": "3", "12": "3"}),  # corrected by hand: an old score would be told as the new one
        ("dump/org/train_sp/.content", {"4": "4"}),
        ("dump/dev/text", {"12": "12"}),
        ("data/train_sp/.done", {"2": "2"}),  # cut off
        ("dump/dev/.done", {"3": "3", "12": "3"}),
    ],
)
def test_no_stage_works_on_what_an_earlier_one_would_make_anew(bash, template, tmp_path: Path, changed, fails) -> None:
    for folder in ("data/train", "data/train_sp", "data/dev", "dump/org/train_sp", "dump/train_sp", "dump/dev"):
        (tmp_path / folder).mkdir(parents=True)
        for table in ("wav.scp", "text", "utt2spk", ".content"):
            if table != ".content" or folder.startswith("dump"):
                (tmp_path / folder / table).write_text(f"u {table}\nfs=16000\n", encoding="utf-8")
    text = CURRENT.format(template=template)
    assert bash("work", text=text).returncode == 0
    if changed is not None and changed.endswith(".done"):
        (tmp_path / changed).unlink()
    elif changed is not None:
        (tmp_path / changed).write_text("u other\nfs=16000\n", encoding="utf-8")
    for stage in ("2", "3", "4", "12"):
        result = bash(stage, text=text)
        assert (result.returncode == 1) == bool(fails.get(stage)), (stage, result.stderr)
        if fails.get(stage):
            assert result.stderr.endswith(f"; run stage {fails[stage]} first\n") and result.stderr.count("\n") == 1
    if changed is None:
        assert "has another rate than '--fs 8000'; run stage 3 first" in bash("3", "8000", text=text).stderr
        assert "has not the speeds 0.9 1.1 of" in bash("2", "16000", "0.9 1.1", text=text).stderr
        (tmp_path / "data").rename(tmp_path / "away")  # what was made can be used without what it was made of
        assert all(bash(stage, text=text).returncode == 0 for stage in ("2", "3", "4", "12"))


TOKENS = """#!/usr/bin/env bash
set -euo pipefail
. {template}/utils/stage.sh
. {template}/utils/stages_data.sh
need() {{ :; }}
need_filtered() {{ :; }}
stage_options() {{ :; }}
data_feats=. train_set=train datadir=. token_type=${{1:-char}} bpemode=unigram nbpe=5 token_dir=tokens token_list=tokens/tokens.txt
data_run=(bash -c 'tr -d " " <train/text >tokens/tokens.txt; cp train/text tokens/bpe.model')
make_tokens
"""


def test_a_token_list_of_somebodys_own_is_kept_and_one_that_lost_its_end_is_said(bash, template, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    text, tokens = tmp_path / "train" / "text", tmp_path / "tokens" / "tokens.txt"
    text.write_text("u A B\n", encoding="utf-8")
    tokens.parent.mkdir()

    def stage_5(token_type: str = "char") -> str:
        result = bash(token_type, text=TOKENS.format(template=template))
        assert result.returncode == 0, result.stderr
        return result.stdout

    tokens.write_text("brought\n", encoding="utf-8")
    assert "is not of stage 5; it is kept as tokens/tokens.txt.old1" in stage_5()
    assert (tmp_path / "tokens" / "tokens.txt.old1").read_text() == "brought\n" and tokens.read_text() == "uAB\n"
    assert stage_5().endswith("done, skipped\n") and "warning" not in stage_5()
    tokens.write_text("uA", encoding="utf-8")
    said = stage_5()
    assert "warning: tokens/tokens.txt is not what stage 5 made: changed, or cut?" in said and tokens.read_text() == "uA"
    text.write_text("u A C\n", encoding="utf-8")
    assert "kept as tokens/tokens.txt.old2" in stage_5() and tokens.read_text() == "uAC\n"
    tokens.unlink()
    assert "char tokens; log" in stage_5() and tokens.read_text() == "uAC\n"
    (tmp_path / "tokens" / ".stage05").write_text("")  # cut off: what is there is stage 5's own
    (tmp_path / "tokens" / ".done").unlink()
    tokens.write_text("half", encoding="utf-8")
    assert "kept" not in stage_5() and tokens.read_text() == "uAC\n"
    stage_5("bpe")
    (tmp_path / "tokens" / "bpe.model").unlink()
    assert "bpe unigram 5 tokens; log" in stage_5("bpe") and (tmp_path / "tokens" / "bpe.model").exists()
