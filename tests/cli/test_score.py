"""Calibrating, scoring, replaying and comparing as a user calls them, on the hand-made experiment of tests/score."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from espnet_ee.cli.main import main
from espnet_ee.errors import UsageError, UserError
from espnet_ee.policy.decoding import DecodingConfig
from tests.score.conftest import experiment  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def dev(experiment: Path) -> list[str]:  # noqa: F811
    """The options that name the development set's evidence."""
    text = experiment.parents[1] / "data/dev/text"
    return ["--evidence", str(experiment / "decode_every_exit/dev/evidence.tsv"), "--text", str(text)]


def test_calibrate_writes_what_it_says(dev: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = ["wer_loss=34", "mean_layer=4", "wer_loss=34"]
    main(["calibrate", *dev, "--out", str(tmp_path / "out"), "--policies", "entropy", "fixed", "--targets", *targets])
    said = [line.partition(",")[0] for line in capsys.readouterr().out.splitlines()]
    assert sorted(said) == ["entropy_mean_layer4", "entropy_wer_loss34", "fixed_mean_layer4", "fixed_wer_loss34"]
    for name in said:
        assert DecodingConfig.read(tmp_path / "out" / f"decode_{name}.yaml").policy.name == name.partition("_")[0]


def test_score_makes_the_page(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    data = experiment.parents[1] / "data"
    words = ["--valid_set", "dev", "--test_sets", "test", "--note", "on a whim", "twice", "--command", "./run.sh"]
    main(["score", "--exp", str(experiment), "--data_root", str(data), *words])
    page = (experiment / "RESULTS.md").read_text()
    assert "- note: on a whim\n- note: twice\n" in page and "- command: `./run.sh`" in page
    assert (experiment / "exits.csv").is_file() and (experiment / "curve.png").is_file()
    assert "test" in capsys.readouterr().out


def test_replay_takes_names_and_files(
    dev: list[str],
    experiment: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = str(experiment / "policies/decode_entropy_wer_loss0.yaml")
    main(["replay", *dev, "--policy", "fixed", "entropy=0.2,0.3", "--config", config])
    table = capsys.readouterr().out
    lines = [line.split("\t") for line in table.splitlines()]
    assert [line[:2] for line in lines[1:6]] == [
        ["fixed", "2"],
        ["fixed", "4"],
        ["fixed", "6"],
        ["entropy", "0.2"],
        ["entropy", "0.3"],
    ]
    assert len(lines) == 7 and lines[6][0] == "entropy"
    main(["replay", *dev, "--policy", "fixed", "entropy=0.2,0.3", "--config", config, "--out", str(tmp_path / "table")])
    assert (tmp_path / "table").read_text() == table


def test_compare_prints_a_page(dev: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    evidence, text = dev[1], dev[3]
    main(["compare", "--evidence", evidence, "--other", evidence, "--text", text, "--names", "this", "that"])
    page = capsys.readouterr().out
    assert "## dev (6 utterances)" in page and "WER % of that" in page
    with pytest.raises(UsageError, match="--text"):
        main(["compare", "--evidence", evidence, "--other", evidence, "--text", text, text])


def test_none_of_them_loads_torch(dev: list[str], tmp_path: Path) -> None:
    words = ["calibrate", *dev, "--out", str(tmp_path / "out"), "--policies", "entropy"]
    program = (
        "import sys\nfrom espnet_ee.cli.main import main\nmain(sys.argv[1:])\n"
        "print(sorted({'torch', 'espnet2', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_nothing_that_is_read_is_written_over(dev: list[str], tmp_path: Path) -> None:
    evidence = Path(dev[dev.index("--evidence") + 1])
    before = evidence.read_bytes()
    with pytest.raises(UsageError, match="evidence.tsv: is one of the files to be read"):
        main(["replay", *dev, "--policy", "entropy=0.1", "--out", str(evidence)])
    with pytest.raises(UsageError, match="is one of the files to be read"):
        main(["compare", *dev, "--other", str(evidence), "--out", str(evidence)])
    assert evidence.read_bytes() == before
    for words in (
        ["data", "lm", "--text", "{0}", "--tokens", "{1}", "--token_type", "char"],
        ["raw-audio", "--train_config", "{0}", "--frontend", "{1}"],
        ["align", "--data", "{1}", "--model", "{1}"],
    ):
        text = tmp_path / "text"
        text.write_text("u A B\n")
        with pytest.raises(UsageError, match="text: is one of the files to be read"):
            main([word.format(text, tmp_path) for word in words] + ["--out", f"{tmp_path}/../{tmp_path.name}/text"])
        assert text.read_text() == "u A B\n"


def test_a_package_is_no_place_to_calibrate_into(dev: list[str], tmp_path: Path) -> None:
    (tmp_path / "package.yaml").write_text("format: 1\n")
    with pytest.raises(UserError, match="was not made by this command"):
        main(["calibrate", *dev, "--out", str(tmp_path), "--policies", "entropy", "--targets", "mean_layer=3"])
    assert not list(tmp_path.glob("decode_*")) and not (tmp_path / "promises.csv").exists()


def test_calibrating_again_replaces_the_earlier_configurations(dev: list[str], tmp_path: Path) -> None:
    for layer in ("3", "4"):
        main(["calibrate", *dev, "--out", str(tmp_path / "out"), "--policies", "entropy", "--targets", f"mean_layer={layer}"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"decode_entropy_mean_layer4.yaml", "promises.csv"}


@pytest.mark.parametrize(("option", "word"), [("--features", "luck"), ("--policies", "guess"), ("--targets", "wer_loss=low")])
def test_a_wrong_word_for_a_calibration_is_the_command_lines_mistake(
    tmp_path: Path, option: str, word: str
) -> None:  # and said before the evidence is looked at
    with pytest.raises(UsageError, match=word):
        main(["calibrate", "--evidence", str(tmp_path / "none.tsv"), "--out", str(tmp_path / "out"), option, word])


def test_a_mean_layer_beyond_the_exits_is_no_target(
    dev: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["calibrate", *dev, "--out", str(tmp_path / "out"), "--policies", "entropy"]
    with pytest.raises(UsageError, match="target mean_layer=6.5: the last exit is 6"):
        main([*words, "--targets", "mean_layer=4", "mean_layer=6.5"])
    with pytest.raises(UsageError, match="target mean_layer=1.9: the first exit is 2"):
        main([*words, "--targets", "mean_layer=1.9"])
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("espnet_ee.cli.score.DEFAULT_TARGETS", ("mean_layer=4", "mean_layer=12", "mean_layer=1"))
    main(words)  # those that nobody named are for models of twelve blocks
    assert [line.partition(",")[0] for line in capsys.readouterr().out.splitlines()] == ["entropy_mean_layer4"]
