"""The command line itself: every command and option there is, how help and mistakes look, and what is loaded for them."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from espnet_ee.cli.main import COMMANDS, get_parser, main
from espnet_ee.data.registry import CORPORA
from espnet_ee.policy.features import FEATURES
from espnet_ee.policy.registry import POLICIES

ROOT = Path(__file__).resolve().parents[2]

# Scripts of users call these: a name that goes or changes its meaning is to be noted in the change log.
OPTIONS = {
    "": "--version",
    "transcribe": "audio --model --policy --budget --hotwords --hotword_boost --format --json --out --max_segment_seconds --cut --engine --int8 --batch_size --num_threads --nj --device "
    "--live --chunk_ms --partial_exit --silence_ms --no_wait",
    "align": "--model --data --audio --text --exit_layer --engine --device --out",
    "data": "",
    "data prepare": "--corpus --root --out --sets --corpus_options --max_skipped --skip_in --lm_text",
    "data validate": "--data --feats_type",
    "data sets": "--train --data",
    "data speed": "--data --out --audio_dir --factors --nj --max_skipped",
    "data format": "--data --out --fs --nj --max_skipped",
    "data features": "--data --out --frontend_conf --compress --nj --max_skipped",
    "data filter": "--data --out --min_seconds --max_seconds --fs",
    "data tokens": "--text --out --token_type --nbpe --model_type",
    "data lm": "--text --tokens --token_type --order --tool --out",
    "data units": "--data --tokens --token_type --asr_config",
    "data download": "--out --parts --hold_out --url",
    "data mini": "--out --utterances_per_speaker --seed --nj",
    "decode": "--model --model_file --data --out --config --policy --policy_conf --every_exit --search --nbest --batch_size --num_threads "
    "--device --chunk_ms --calibrate_on --policies --targets --features --lm --beam --lm_weights --insertions --online",
    "calibrate": "--evidence --text --out --policies --targets --features",
    "score": "--exp --data_root --valid_set --test_sets --separate --command --note --date",
    "replay": "--evidence --text --policy --config --thresholds --out",
    "compare": "--evidence --other --text --names --title --note --out",
    "compare-models": "--models --out --sets --missing --title --note --command",
    "export": "--model --model_file --format --policy --int8 --exit_layer --out",
    "set-threshold": "--model --threshold",
    "raw-audio": "--train_config --frontend --out",
    "pack": "--model --model_file --out --name --licence --training_data --language --command --config",
}


def walk(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command with its parser."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, command in action.choices.items():
                yield from walk(command, f"{name} {word}".strip())


PARSERS = dict(walk(get_parser()))


def names(parser: argparse.ArgumentParser) -> list[str]:
    """Options of a parser as they are written, and its positional arguments by name."""
    actions = [action for action in parser._actions if not isinstance(action, argparse._SubParsersAction)]
    words = [action.option_strings or [action.dest] for action in actions]
    return [word for spellings in words for word in spellings if word not in ("-h", "--help")]


def test_these_are_all_commands_and_options() -> None:
    assert {name: " ".join(names(parser)) for name, parser in PARSERS.items()} == OPTIONS


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)
def test_one_dialect(parser: argparse.ArgumentParser) -> None:
    assert not parser.allow_abbrev
    for action in parser._actions:
        assert action.help or isinstance(action, argparse._SubParsersAction), action
        assert all(word == word.lower() and "-" not in word.strip("-") for word in action.option_strings), "snake_case"
        assert "true" not in (action.choices or ()), "a flag takes no value"


@pytest.mark.parametrize("name", PARSERS)
def test_help_is_there(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    assert stop.value.code == 0
    assert f"usage: espnet-ee{f' {name}' if name else ''} " in capsys.readouterr().out


@pytest.mark.parametrize("words", ["", "dat", "nothing", "data", "data prep", "data mini --ou x", "--vers"])
def test_what_is_no_command_is_a_mistake_of_the_command_line(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "error: " in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["transcribe", "", "--model", "x"],
        ["transcribe", "a.wav", "--model", ""],
        ["transcribe", "a.wav", "--model", "x", "--out", ""],
        ["data", "tokens", "--text", "text", "--token_type", "char", "--out", ""],
        ["data", "sets", "--train", "x", "--data", ""],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_not_the_folder_where_one_is(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2 and "is empty; name a file or a folder" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], *([name, "--help"] for name in COMMANDS)], ids=" ".join)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    heavy = ("torch", "espnet2", "scipy", "pandas", "jiwer", "matplotlib", *(("numpy",) if words == ["--help"] else ()))
    program = (
        "import sys\nfrom espnet_ee.cli.main import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        f"print(sorted(set({heavy!r}) & set(sys.modules)), file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_help_lists_the_choices() -> None:
    for name in ("replay", "calibrate", "decode", "transcribe"):
        assert all(policy in PARSERS[name].format_help() for policy in POLICIES)
    assert all(feature in PARSERS["calibrate"].format_help() for feature in FEATURES)
    assert all(corpus in PARSERS["data prepare"].format_help() for corpus in CORPORA)
    assert all(part in PARSERS["data download"].format_help().replace("-\n", "-") for part in ("dev-clean", "train-other-500"))
