"""From decodings to RESULTS.md, exits.csv and curve.png: what is refused, what is said. The numbers are test_golden's."""

from __future__ import annotations

import builtins
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

import espnet_ee
from espnet_ee.errors import UserError
from espnet_ee.kaldi import write_scp
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.score.experiment import ScoreOptions, score_experiment
from espnet_ee.score.page import set_table, shown_points
from espnet_ee.score.picture import make_figure
from espnet_ee.score.points import read_exits, write_exits
from tests.score.conftest import SETS, write_online

OUTPUTS = ("RESULTS.md", "exits.csv", "curve.png")
ONLINE = "decode_entropy_wer_loss0/test"


def score(experiment: Path, **options: Any) -> str:
    options = {"valid_set": "dev", "test_sets": ["test"], "command": "./run.sh --stage 13", **options}
    page = score_experiment(ScoreOptions(experiment, experiment.parent.parent / "data", **options))
    for result in page.sets:
        said = "\n".join(set_table(result, page.valid_set))
        assert all(point.name in said for point in shown_points(result))
    return (experiment / "RESULTS.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def quick_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes a second; only the picture's own tests need it."""
    if "picture" not in request.node.name:
        monkeypatch.setattr("espnet_ee.score.experiment.make_figure", lambda *_: None)
        monkeypatch.setattr("espnet_ee.score.experiment.save_figure", lambda path, _: path.write_bytes(b""))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_the_environment_is_that_of_the_decoding(experiment: Path) -> None:
    (experiment / "train_time.yaml").write_text("seconds: 1230\nresumed: false\nngpu: 1\nthreads: 2\n", encoding="utf-8")
    lines = score(experiment, date="2030-01-02").splitlines()
    for line in (
        "# RESULTS: ee",
        "- date: `2030-01-02`",
        "- python version: `3.11.4`",
        "- espnet version: `202511`",
        "- torch version: `2.11.0`",
        "- command: `./run.sh --stage 13`",
        "- training time: `20.5 minutes on 2 thread(s), 1 GPU`",
        "![word error rate versus compute](curve.png)",
    ):
        assert line in lines


def test_the_commit_is_told_of_the_packages_own_repository_alone(experiment: Path) -> None:
    root = Path(espnet_ee.__file__).parents[1]
    inside = subprocess.run(
        ["git", "-C", str(root), "ls-files", "espnet_ee/__init__.py"], capture_output=True, check=False
    ).stdout
    lines = [line for line in score(experiment).splitlines() if line.startswith("- git hash")]
    assert len(lines) == bool(inside)
    assert all(re.fullmatch(r"- git hash: `[0-9a-f]{40}( \(with local changes\))?`", line) for line in lines)


def test_the_development_set_comes_last_and_each_set_once(experiment: Path) -> None:
    lines = score(experiment, test_sets=["dev", "test", "test"]).splitlines()
    titles = [line for line in lines if re.search(r"^## .* utterances[;)]", line)]
    assert [title.split()[1] for title in titles] == ["test", "dev"]


def test_exits_csv_is_read_back(experiment: Path, tmp_path: Path) -> None:
    score(experiment)
    points = read_exits(experiment / "exits.csv")
    assert {point.kind for point in points} == {"fixed", "sweep", "promise", "calibrated", "online", "oracle"}
    write_exits(tmp_path / "again.csv", points)
    assert (tmp_path / "again.csv").read_bytes() == (experiment / "exits.csv").read_bytes()
    (tmp_path / "windows.csv").write_bytes(b"\xef\xbb\xbf" + (experiment / "exits.csv").read_bytes())
    assert repr(read_exits(tmp_path / "windows.csv")) == repr(points)
    edit(tmp_path / "again.csv", "test,fixed,exit 4,20.0", "test,fixed,exit 4,21.0")
    assert read_exits(tmp_path / "again.csv")[0].wer == 50.0  # the rates follow from the counts
    edit(tmp_path / "again.csv", ",4.0,", ",deep,")
    with pytest.raises(UserError, match=r"again.csv:\d+: .*deep"):
        read_exits(tmp_path / "again.csv")


def test_counts_of_other_references_are_not_believed(experiment: Path) -> None:
    score(experiment)
    kept = experiment / "decode_every_exit/test/errors.tsv"
    first = kept.read_text(encoding="utf-8")
    assert "a\t2\t1\t1\t1\t0\t6\t1\t4\t0\n" in first
    edit(experiment.parent.parent / "data/test/text", "a the cat sat", "a the bat")
    assert "|exit 2|33.33 [" in score(experiment)
    for damaged in ("", "# way 1", first.replace("a\t2\t1\t1", "a\t2\tone\t1"), first[:-9]):
        kept.write_text(damaged, encoding="utf-8")
        assert "|exit 2|33.33 [" in score(experiment)


def test_the_page_of_espnets_stage_13_stays(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = score(experiment)
    stock = "<!-- Generated by scripts/utils/show_asr_result.sh -->\n# RESULTS\n"
    (experiment / "RESULTS.md").write_text(stock)
    assert score(experiment) == stock
    assert (experiment / "EXITS.md").read_text(encoding="utf-8") == page
    assert "EXITS.md" in capsys.readouterr().err


def test_invisible_characters_are_told(experiment: Path) -> None:
    edit(experiment.parent.parent / "data/test/text", "the cat sat", "the\u200bcat sat\u00ad")
    text = score(experiment)
    assert "## test (4 utterances, 2 invisible characters of the references not scored)" in text
    assert "|exit 6/test|4|10|70.0|30.0|" in text


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("utt2exit", "a 4", "a 6", "1 stopped at another exit, 0 have another text, 0 other MACs"),
        ("1best_recog/text", "cat", "rat", "0 stopped at another exit, 1 have another text, 0 other MACs"),
        ("utt2macs", "a 24000000", "a 22000000", "0 stopped at another exit, 0 have another text, 1 other MACs"),
    ],
)
def test_an_online_run_unlike_its_replay_is_not_hidden(
    experiment: Path, capsys: pytest.CaptureFixture[str], file: str, old: str, new: str, said: str
) -> None:
    edit(experiment / ONLINE / file, old, new)
    text = score(experiment)
    assert f"online = replay: **NO**: of 4 utterances {said}" in text
    [row] = [line for line in text.splitlines() if line.startswith("|entropy_wer_loss0|") and line.endswith("|**NO**|")]
    # What ran is what is shown: "rat" is one word more, 6 of 4 exits one block deeper, 2 MMACs less.
    shown = {"utt2exit": "|4.00|", "1best_recog/text": "|40.00 [", "utt2macs": "|10.6|"}[file]
    assert shown in row
    assert f"test: entropy_wer_loss0: online = replay: NO: of 4 utterances {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "said"), [("0.325", "0.315", "another policy"), ("rtf:", "model_digest: '7'\nrtf:", "another model")]
)
def test_what_an_earlier_model_or_calibration_left_is_no_result(
    experiment: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, said: str
) -> None:
    edit(experiment / ONLINE / "decode.yaml", old, new)
    [row] = [line for line in score(experiment).splitlines() if line.startswith("|entropy_wer_loss0|30.00")]
    assert row.endswith("|-|") and "|0.1333*|" in row
    shown = capsys.readouterr().err
    assert ONLINE in shown and said in shown
    edit(experiment / "decode_every_exit/test/decode.yaml", "parameters:", "model_digest: '7'\nparameters:")
    assert ("online = replay: yes" in score(experiment)) == (said == "another model")


def test_own_configurations_have_rows_of_their_own(experiment: Path) -> None:
    write_online(experiment / "mine" / "test", SETS["test"], EntropyPolicy(99.0), rtf=0.02)
    write_online(experiment / "decode_all" / "test", SETS["test"], FixedExitPolicy(6), rtf=0.09)
    text = score(experiment)
    assert "|mine|50.00 [" in text and "|all|30.00 [" in text
    assert "- mine: online = replay: yes" in text  # with an empty text, too


def test_a_model_without_policies_has_its_page(experiment: Path) -> None:
    for path in (*experiment.glob("policies/*"), *(experiment / ONLINE).glob("*.yaml")):
        path.unlink()
    text = score(experiment)
    assert "|exit 6|30.00 [" in text and "|oracle|10.00 [" in text
    assert not any(word in text for word in ("Promised", "Where utterances stop", "Hurt most"))


def test_separately_trained_models_are_a_reference(experiment: Path) -> None:
    score(experiment)
    other = experiment.parent / "conformer6"
    other.mkdir()
    (other / "exits.csv").write_bytes((experiment / "exits.csv").read_bytes())
    text = score(experiment, separate=[other])
    assert "|separate: conformer6|30.00 [" in text
    assert "|separate: conformer6/test|4|10|" in text
    edit(other / "exits.csv", "test,fixed", "else,fixed")
    with pytest.raises(UserError, match=r"conformer6/exits.csv: set test"):
        score(experiment, separate=[other])


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (f"{ONLINE}/1best_recog/text", "c hello\n", "", "1best_recog/text: no hypothesis for c"),
        (f"{ONLINE}/utt2exit", "a 4", "z 4", "utt2exit: no hypothesis for a"),
        (f"{ONLINE}/utt2exit", "a 4", "a four", "utt2exit: a has 'four'"),
        (f"{ONLINE}/decode.yaml", "policy: entropy", "policy: gut", "decode.yaml: .*'gut'"),
        (f"{ONLINE}/decode.yaml", "policy: entropy", "[", r"decode.yaml:\d+: not plain YAML"),
        ("decode_every_exit/test/timing.tsv", "c\t4\t0.08\n", "", r"timing.tsv: c has times for exits \[2, 6\]"),
        ("decode_every_exit/test/timing.tsv", "c\t4\t0.08", "c\t4\tsoon", r"timing.tsv:6: "),
        ("policies/decode_entropy_wer_loss0.yaml", "threshold", "luck", "decode_entropy_wer_loss0.yaml: .*'luck'"),
        ("policies/promises.csv", "dev,promise", "dev", r"promises.csv:2: "),
    ],
)
def test_broken_inputs_are_named_and_nothing_is_written(experiment: Path, file: str, old: str, new: str, message: str) -> None:
    edit(experiment / file, old, new)
    with pytest.raises(UserError, match=message):
        score(experiment)
    assert not [name for name in OUTPUTS if (experiment / name).exists()]


def test_missing_inputs_are_named(experiment: Path) -> None:
    with pytest.raises(UserError, match=r"decode_every_exit/other/evidence.tsv"):
        score(experiment, test_sets=["other"])
    write_scp(experiment.parent.parent / "data/test/text", {"a": "the cat sat"})
    with pytest.raises(UserError, match=r"set test: hypothesis for c"):
        score(experiment)


def test_timing_is_optional(experiment: Path) -> None:
    (experiment / "decode_every_exit/test/timing.tsv").unlink()
    assert "|7.14|6.00|16.2|100.0|-|-|-|" in score(experiment)


def test_the_picture_fits_a_page(experiment: Path) -> None:
    score(experiment)
    data = (experiment / "curve.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    assert 800 <= width <= 1800 and 600 <= height <= 900


def test_without_matplotlib_the_curve_says_what_to_install(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score(experiment)
    points = read_exits(experiment / "exits.csv")
    original = builtins.__import__

    def refuse(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(name, name=name)
        return original(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"pip install"):
        make_figure(points, ["dev"], "m")
