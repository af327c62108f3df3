"""The option parser: declared names only, exit status 2 for anything else, and nothing is ever evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest

SCRIPT = """#!/usr/bin/env bash
set -euo pipefail
outside=kept # not an option: it stands before the marker
# begin options
stage=1           # first stage
note="a b"        # a remark
asr_args=""       # further options
asr_tag=          # has no default
# end options
later=kept # not an option either
. {template}/utils/parse_options.sh
parse_options "$@"
require_integer stage
printf '<%s>' "$stage" "$note" "$asr_args" "$asr_tag" "$outside" "$later"
"""


@pytest.fixture
def parse(bash, template):
    """Runs a script that declares four options."""
    return lambda *arguments: bash(*arguments, text=SCRIPT.format(template=template))


def test_defaults(parse):
    assert parse().stdout == "<1><a b><><><kept><kept>"


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        "two words",
        "  blanks around  ",
        "",
        'it\'s "quoted"',
        "$(touch pwned)",
        "`touch pwned`",
        "; touch pwned",
        "a[$(touch pwned)]",
        "${HOME} $note *",
        "back\\slash\\n",
        "über",
        "--max_epoch 3 --lr=2",
        "-5",
        "--",
        "x=y",
        "new\nline",
    ],
)
@pytest.mark.parametrize("joined", [False, True])
def test_a_value_is_stored_as_it_is(parse, tmp_path: Path, value: str, joined: bool):
    result = parse(f"--note={value}") if joined else parse("--note", value)
    assert (result.returncode, result.stdout) == (0, f"<1><{value}><><><kept><kept>")
    assert not (tmp_path / "pwned").exists()


def test_the_last_one_counts(parse):
    assert parse("--stage", "3", "--stage=4").stdout.startswith("<4>")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--stages", "1"], "--stages"),
        (["--stages=1"], "--stages"),
        (["--PATH", "/x"], "--PATH"),
        (["--outside", "x"], "--outside"),
        (["--later=x"], "--later"),
        (["--stage note", "x"], "--stage note"),
        (["--", "x"], "--"),
        (["--=x"], "--"),
        (["--sta.e", "1"], "--sta.e"),
        (["--note[$(touch pwned)]=x"], "--note[$(touch pwned)]"),
        (["--$(touch pwned)=x"], "--$(touch pwned)"),
        (["stage", "3"], "stage"),
        (["-s", "3"], "-s"),
        (["--stage"], "--stage"),
        (["--stage", "2", "--note"], "--note"),
        (["--stage", "--note", "x"], "--stage"),
        (["--asr_tag", "--note=x"], "--asr_tag"),
        (["--stage", "three"], "--stage"),
        (["--stage", ""], "--stage"),
        (["--stage", "-1"], "--stage"),
        (["--stage", "a[$(touch pwned)]"], "--stage"),
    ],
)
def test_what_is_refused(parse, tmp_path: Path, arguments: list[str], named: str):
    result = parse(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1 and "script.sh: error: " in result.stderr
    assert f"'{named}'" in result.stderr
    assert not (tmp_path / "pwned").exists()


def test_help_lists_names_defaults_and_meanings(parse):
    result = parse("--help", "--nonsense")
    assert result.returncode == 0
    assert "--stage" in result.stdout and "first stage (default: 1)" in result.stdout
    assert "a remark (default: a b)" in result.stdout
    assert "has no default (default: none)" in result.stdout
    assert "outside" not in result.stdout and "later" not in result.stdout


def test_help_of_the_pipeline_names_every_option(bash, template):
    text = (template / "asr_ee.sh").read_text(encoding="utf-8")
    block = text.split("# begin options\n")[1].split("# end options")[0]
    result = bash("asr_ee.sh", "--help", cwd=template)
    shown = {line.split()[0] for line in result.stdout.split("Passed on to")[0].splitlines()[1:]}
    assert shown == {f"--{line.split('=')[0]}" for line in block.splitlines()}
    assert "[-]" not in result.stdout and "*]" not in result.stdout, "the stages are not for users"


ME = "conf/train_ee_conformer.yaml"  # a YAML that is there
NO_STAGE = ("--stage", "99")  # what is not refused must not start


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "'--train_set' is needed"),
        (["--feats_type", "fbank"], "none of: raw extracted"),
        (["--nj", "many"], "whole number"),
        (["--inference_configs", "conf/nowhere.yaml"], "asr1/conf/nowhere.yaml"),
        (["--frobnicate", "1"], "unknown option '--frobnicate'"),
        (["--inference_configs", f"{ME} ../asr1/{ME}"], "name 'train_ee_conformer' of ../asr1"),
        (["--speed_perturb_factors", "0.9,1.1"], "'0.9,1.1' is not a factor"),
        (["--speed_perturb_factors", "0.9 *"], "'*' is not a factor"),
        (["--speed_perturb_factors", "0.0"], "'0.0' is not a factor"),
        (["--stop_stage", "08"], "whole number"),
        (["--dumpdir", "/tmp/a,b"], "no comma"),
        (["--expdir", "/tmp/a\nb"], "no line ends"),
        (["--num_nodes", "2"], "--num_nodes 2 needs a train_cmd"),
        *(([f"--{name}", ""], f"'--{name}' is needed") for name in ("datadir", "dumpdir", "expdir")),
        (["--test_sets", " "], "'--test_sets' is needed"),
        (["--test_sets", "test,dev"], "no comma or slash in 'test,dev'; several are separated by blanks"),
        (["--valid_set", "../dev"], "no comma or slash in '../dev'"),
        (["--asr_tag", "../other"], "no slash in a name"),
        (["--seed", "abc"], "'--seed' needs a whole number"),
        (["--stop_stage", "98"], "'--stage 99' comes after '--stop_stage 98'"),
        (["--stage", "6", "--stop_stage", "8"], "there are no stages 6 to 8"),
        (["--dumpdir", "x/../data"], "'--datadir' and '--dumpdir' are one folder, "),
        (
            ["--asr_exp", "/tmp/x", "--asr_stats_dir", "/tmp/y/../x"],
            "'--asr_stats_dir' and '--asr_exp' are one folder, /tmp/x;",
        ),
        (["--asr_args", "--resume false"], "--resume cannot be given: a training goes on"),
        (["--asr_args", "--max_epoch 2 --output_dir=x"], "--output_dir cannot be given: give '--asr_exp'"),
        (["--python", "/nowhere/python3"], "/nowhere/python3 does not run"),
        (["--max_skipped", "abc"], "'--max_skipped' needs a percentage, not 'abc'"),
        (["--max_skipped", "100.5"], "'--max_skipped' needs a percentage"),
        (["--test_sets", "test train"], "'train' is the training set"),
        (["--valid_set", "train"], "'train' is the training set"),
        (["--speed_perturb_factors", "0.9 1.0", "--test_sets", "train_sp"], "'train_sp' is the training set"),
    ],
)
def test_the_pipeline_checks_its_options_before_it_starts(bash, root, arguments, message):
    recipe = root / "egs" / "mini" / "asr1"
    script = "asr_ee.sh" if not arguments else "run.sh"
    result = bash(script, *(() if "--stage" in arguments else NO_STAGE), *arguments, cwd=recipe)
    assert result.returncode == 2
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_the_raw_training_set_is_scored_where_the_training_takes_its_copies(bash, root):
    options = ("--speed_perturb_factors", "0.9 1.0", "--test_sets", "train", "--valid_set", "train")
    assert bash("run.sh", *options, *NO_STAGE, cwd=root / "egs" / "mini" / "asr1").returncode == 0


def test_percentages(bash, template):
    script = f". {template}/utils/parse_options.sh\na=$1\nrequire_percentage a"
    assert all(bash(number, text=script).returncode == 0 for number in ("0", "0.5", "1", "99.9", "100", "100.0"))
    assert all(
        bash(number, text=script).returncode == 2 for number in ("", "-1", ".", "1%", "1,5", "101", "100.01", "1e1", "nan")
    )


@pytest.mark.parametrize("stage", ["12", "14"])
def test_a_model_that_training_has_not_made(bash, root, tmp_path: Path, stage: str):
    options = (f"--asr_exp={tmp_path}", "--inference_asr_model=nope.pth", f"--stage={stage}", f"--stop_stage={stage}")
    (tmp_path / "checkpoint.pth").touch()
    assert "nope.pth is missing; run stage 11 first" in bash("run.sh", *options, cwd=root / "egs" / "mini" / "asr1").stderr
    (tmp_path / "valid.loss.best.pth").touch()
    result = bash("run.sh", *options, cwd=root / "egs" / "mini" / "asr1")
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "nope.pth is missing; for '--inference_asr_model' stage 11 has made so far: valid.loss.best.pth (" in result.stderr


@pytest.mark.parametrize(
    ("stage", "option", "file"), [("11", "asr_stats_dir", "train/speech_shape"), ("12", "asr_exp", "valid.loss.ave.pth")]
)
def test_a_folders_closing_slashes_do_not_count(bash, root, tmp_path: Path, stage: str, option: str, file: str):
    options = (f"--{option}={tmp_path}/made//", f"--stage={stage}", f"--stop_stage={stage}")
    result = bash("run.sh", *options, cwd=root / "egs" / "mini" / "asr1")
    assert result.returncode == 1
    assert f"error: {tmp_path}/made/{file} is missing" in result.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "not plain YAML"),
        ("x: !!python/name:os.system", "not plain YAML"),
        ("- a", "lines"),
        ("frontend_conf: 1", "lines"),
    ],
)
def test_a_configuration_that_is_none_is_one_line(bash, root, tmp_path: Path, content: str, message: str):
    config = tmp_path / "train.yaml"
    config.write_text(content, encoding="utf-8")
    result = bash("run.sh", "--asr_config", str(config), *NO_STAGE, cwd=root / "egs" / "mini" / "asr1")
    assert result.returncode == 1
    assert result.stderr.startswith(f"asr_ee: error: {config}:") and message in result.stderr and result.stderr.count("\n") == 1


def test_what_a_training_has_written_is_no_configuration_of_one(bash, root, tmp_path: Path):
    config = tmp_path / "config.yaml"
    config.write_text("output_dir: exp/x\ntrain_shape_file: [a, b]\nresume: true\ntoken_list:\n", encoding="utf-8")
    result = bash("run.sh", "--asr_config", str(config), *NO_STAGE, cwd=root / "egs" / "mini" / "asr1")
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert f"{config}: has train_shape_file and output_dir, so it is what a training has written" in result.stderr


def test_options_for_a_script_that_is_not_there(bash, template, tmp_path: Path):
    words = ("--train_set=a", "--valid_set=b", "--test_sets=c", "--local_data_opts=--an4_root x", *NO_STAGE)
    result = bash("asr_ee.sh", *words, cwd=template)
    assert result.returncode == 2 and "there is no local/data.sh to take '--an4_root x'" in result.stderr


def test_statistics_that_nobody_names(bash, root, tmp_path: Path):
    config = tmp_path / "train.yaml"
    config.write_text("normalize: global_mvn\n", encoding="utf-8")
    words = ("--asr_config", str(config), *NO_STAGE)
    result = bash("run.sh", *words, cwd=root / "egs" / "mini" / "asr1")
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert f"{config}: " in result.stderr and "--feats_normalize global_mvn" in result.stderr
    assert bash("run.sh", "--feats_normalize", "global_mvn", *words, cwd=root / "egs" / "mini" / "asr1").returncode == 0


def test_help_shows_the_recipes_own_defaults(bash, root):
    shown = bash("run.sh", "--help", cwd=root / "egs" / "librispeech" / "asr1").stdout
    assert "number of BPE tokens (default: 500)" in shown
    assert "(default: conf/train_ee_fast_conformer.yaml)" in shown


OTHER = """# begin options
stage=7     # the first script's own comes first
root=""     # where the corpus is
# end options
"""


@pytest.fixture
def parse_two(bash, template, tmp_path: Path):
    """Runs a script that takes another script's options, too."""
    (tmp_path / "data.sh").write_text(OTHER, encoding="utf-8")
    text = SCRIPT.format(template=template).replace('parse_options "$@"', 'option_files=(data.sh)\nparse_options "$@"')
    return lambda *arguments: bash(*arguments, text=text + "printf '[%s]' ${forwarded_options[@]+\"${forwarded_options[@]}\"}")


def test_options_of_another_script_are_passed_on(parse_two):
    result = parse_two("--root", "a b", "--stage", "2", "--root=$(touch pwned)")
    assert result.stdout == "<2><a b><><><kept><kept>[--root=a b][--root=$(touch pwned)]"
    assert "[--root=]" in parse_two("--root", "").stdout


@pytest.mark.parametrize("arguments", [["--root"], ["--stage", "--root", "x"], ["--roots", "x"], ["--outside", "x"]])
def test_what_is_refused_with_two_scripts(parse_two, arguments: list[str]):
    result = parse_two(*arguments)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (2, "", 1)


def test_help_shows_what_is_passed_on(parse_two):
    text = parse_two("--help").stdout
    assert "Passed on to data.sh:\n  --root" in text and text.count("--stage") == 1


def test_an4_says_how_to_name_its_corpus(bash, root, tmp_path: Path):
    options = ("--stop_stage", "1", "--datadir", str(tmp_path / "data"))
    script = str(root / "egs" / "an4" / "asr1" / "run.sh")
    assert "where is AN4?" in bash(script, *options, AN4="").stderr
    result = bash(script, *options, "--an4_root", str(tmp_path / "nowhere"), AN4="")
    assert result.returncode == 1 and str(tmp_path / "nowhere") in result.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--calibrate_targets", "wer_loss=1 macs=20"], "target 'macs=20' cannot be"),
        (["--calibrate_policies", "entropi"], "--policies entropi: is none of"),
        (["--online_policies", "posterior"], "--online posterior: is not among the policies that are calibrated"),
    ],
)
def test_a_calibration_that_cannot_be_is_refused_before_the_training(bash, root, tmp_path: Path, words, message):
    made = [f"--{name}={tmp_path / name}" for name in ("datadir", "dumpdir", "expdir")]
    result = bash("run.sh", *made, *words, cwd=root / "egs" / "mini" / "asr1")
    assert result.returncode == 2 and result.stderr.startswith(f"asr_ee: error: {message}") and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
