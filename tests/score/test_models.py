"""Several models side by side: the table's numbers, what is left out, and what is refused."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from espnet_ee.cli.main import main
from espnet_ee.errors import UsageError, UserError
from espnet_ee.policy.registry import POLICIES as REGISTERED
from espnet_ee.score import picture
from espnet_ee.score.environment import environment_lines, read_environment
from espnet_ee.score.models import HEADER, compare_models, page_lines, read_models, set_lines
from espnet_ee.score.models_picture import make_models_figure
from espnet_ee.score.picture import OTHER_POLICY, POLICIES
from espnet_ee.score.points import Point, write_exits
from espnet_ee.score.wer import ErrorCounts


def point(layer: float, errors: int, macs: float, kind: str = "fixed", name: str = "", set_name: str = "test", **more) -> Point:
    """Of four utterances with ten words, so many substituted."""
    words = ErrorCounts(4, 10, 10 - errors, errors, 0, 0, min(4, errors))
    low, high = 10.0 * errors - 5, 10.0 * errors + 7.5
    return Point(set_name, kind, name or f"exit {layer:g}", words, ErrorCounts(), layer, macs, low, high, **more)


@pytest.fixture
def experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """exp/ee with exits 2, 4 and two policies; exp/d2 and exp/d4 with one exit each."""
    monkeypatch.chdir(tmp_path)
    policies = [
        point(2.5, 3, 16e6, "calibrated", "entropy_wer_loss5", policy="entropy"),
        point(3.25, 2, 21.5e6, "calibrated", "learned_wer_loss5", policy="learned"),
        point(3.0, 2, 20.24e6, "online", "learned_wer_loss5", policy="learned"),
        point(2, 4, 12.5e6, "calibrated", "fixed_mean_layer2", policy="fixed"),
    ]
    ee = [point(2, 4, 12.5e6), point(4, 1, 24.04e6), *policies, point(2, 0, 12.5e6, "oracle", "oracle")]
    for name, points in {"ee": ee, "d2": [point(2, 3, 12.25e6)], "d4": [point(4, 2, 24e6)]}.items():
        write_exits(tmp_path / "exp" / name / "exits.csv", points)
    facts = {"parameters": "2,8", "espnet version": "202511", "command": "./run.sh --asr_args '--a b'"}
    page = ["# RESULTS: ee", "", "## Environments", "", *environment_lines(facts), "- note: by hand"]
    (tmp_path / "exp" / "ee" / "RESULTS.md").write_text("\n".join(page) + "\n", encoding="utf-8")
    return tmp_path


WORDS = ("EE=exp/ee", "one exit=exp/d2,exp/d4")


def test_the_table_has_the_numbers_of_the_experiments(experiments: Path) -> None:
    assert set_lines(read_models(WORDS)[0], "test") == [
        "## test (4 utterances, 10 words)",
        "",
        "|exit|EE: WER % [95 %]|MMACs/s|one exit: WER % [95 %]|MMACs/s|",
        "|---|---:|---:|---:|---:|",
        "|2|40.00 [35.00, 47.50]|12.5|30.00 [25.00, 37.50]|12.2|",
        "|4|10.00 [5.00, 17.50]|24.0|20.00 [15.00, 27.50]|24.0|",
        "",
        "|policy|EE: WER % [95 %]|mean exit layer|MMACs/s|",
        "|---|---:|---:|---:|",
        "|entropy_wer_loss5|30.00 [25.00, 37.50]|2.50|16.0|",
        "|learned_wer_loss5|20.00 [15.00, 27.50]|3.00|20.2|",
    ]


def test_names_are_no_markup(experiments: Path) -> None:
    names, price = ["a|b\\", "$x_{$"], "$5 | $6"
    words = [f"{name}=exp/{folder}" for name, folder in zip(names, ("ee", "d2"), strict=True)]
    lines = set_lines(read_models(words)[0], "test")
    assert lines[2] == "|exit|a\\|b\\\\: WER % [95 %]|MMACs/s|$x_{$: WER % [95 %]|MMACs/s|"
    main(
        ["compare-models", "--models", *words, "--out", "page", "--title", price]
    )  # a $ begins no formula, which would be broken
    assert f"# {price}" in (experiments / "page" / "COMPARISON.md").read_text(encoding="utf-8")


def test_policies_of_one_name_stand_side_by_side(experiments: Path) -> None:
    policies = [
        point(3.5, 1, 18e6, "online", "learned_wer_loss5", policy="learned"),
        point(2.0, 4, 12e6, "online", "decoder_wer_loss5", policy="decoder"),
    ]
    write_exits(experiments / "exp" / "aed" / "exits.csv", [point(4, 1, 24e6), *policies])
    lines = set_lines(read_models([*WORDS, "AED=exp/aed"])[0], "test")
    assert lines[-4:] == [
        "|---|---:|---:|---:|---:|---:|---:|",
        "|entropy_wer_loss5|30.00 [25.00, 37.50]|2.50|16.0|-|-|-|",
        "|learned_wer_loss5|20.00 [15.00, 27.50]|3.00|20.2|10.00 [5.00, 17.50]|3.50|18.0|",
        "|decoder_wer_loss5|-|-|-|40.00 [35.00, 47.50]|2.00|12.0|",
    ]


def test_an_exit_that_a_model_has_not_is_a_blank(experiments: Path) -> None:
    (line,) = [line for line in set_lines(read_models(["EE=exp/ee", "deep=exp/d4"])[0], "test") if line.startswith("|2|")]
    assert line == "|2|40.00 [35.00, 47.50]|12.5|-|-|"


def test_the_page_says_where_it_is_from_and_what_is_left_out(experiments: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--models", *WORDS, "wavlm=exp/none", "--out", "exp", "--missing", "aed: no configuration", "--note", "as it was"]
    main(["compare-models", *words, "--command", "local/run_comparison.sh"])
    page = (experiments / "exp" / "COMPARISON.md").read_text(encoding="utf-8")
    assert page.startswith(HEADER) and "# Models, exit by exit\n\nas it was\n\n![" in page
    left_out = ["aed: no configuration", "wavlm: exp/none has no exits.csv: not trained or not scored"]
    assert "\n## Left out\n\n" + "".join(f"- {line}\n" for line in left_out) in page
    assert "## EE: `exp/ee`\n\n- parameters: `2,8`\n- espnet version: `202511`\n- command: `./run.sh" in page
    assert "## one exit: `exp/d4`\n\n- without a page of results\n" in page
    assert page.rstrip().endswith("- command: `local/run_comparison.sh`")
    assert (experiments / "exp" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr()
    assert said.err.splitlines() == [f"warning: left out: {line}" for line in left_out]
    assert "|2|40.00 [35.00, 47.50]|12.5|30.00" in said.out
    main(["compare-models", *words, "--command", "local/run_comparison.sh"])
    assert (experiments / "exp" / "COMPARISON.md").read_text(encoding="utf-8") == page


def test_nothing_is_written_over_somebody_elses_page(experiments: Path) -> None:
    (experiments / "COMPARISON.md").write_text("mine\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"COMPARISON\.md: exists and was not made by this command"):
        main(["compare-models", "--models", *WORDS, "--out", "."])
    assert sorted(path.name for path in experiments.iterdir()) == ["COMPARISON.md", "exp"]


def test_sets_of_other_sizes_are_said_to_be_so(experiments: Path) -> None:
    short = replace(point(2, 3, 1e6), words=ErrorCounts(3, 8, 5, 3, 0, 0, 3))
    write_exits(experiments / "exp" / "short" / "exits.csv", [short])
    lines = set_lines(read_models(["EE=exp/ee", "short=exp/short"])[0], "test")
    said = "EE: 4 utterances, 10 words; short: 3 utterances, 8 words"
    assert f"**These are not the same utterances or references**: {said}." in lines


def test_sets_are_shown_as_asked_and_a_model_may_lack_one(experiments: Path) -> None:
    write_exits(experiments / "exp" / "both" / "exits.csv", [point(2, 1, 1e6, set_name=name) for name in ("test", "dev")])
    words = ["EE=exp/ee", "both=exp/both"]
    assert compare_models(words).sets == ["test", "dev"]
    shown = compare_models(words, ["dev", "test", "dev"])
    assert shown.sets == ["dev", "test"] and shown.left_out == ["EE: not scored on dev"]
    assert "|exit|both: WER % [95 %]|MMACs/s|" in page_lines(shown)
    with pytest.raises(UserError, match="set other: no model was scored on it, only on test, dev"):
        compare_models(words, ["other"])


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["exp/ee"], UsageError, r"--models 'exp/ee': is not NAME=EXPERIMENT"),
        (["=exp/ee"], UsageError, r"is not NAME=EXPERIMENT"),
        (["x="], UsageError, r"is not NAME=EXPERIMENT"),
        (["x=exp/ee", " x =exp/d2"], UsageError, r"two are called 'x'"),
        (["x=exp/ee,exp/d4"], UserError, r"x: exp/ee and exp/d4 both have exit 4 on test; make two columns"),
        (["x=exp/none"], UserError, r"no model has been scored; x: exp/none has no exits\.csv"),
        (["x=exp/broken"], UserError, r"exp/broken/exits\.csv: test, exit 2: something is no number"),
    ],
)
def test_what_cannot_be_compared_is_one_line(experiments: Path, words: list[str], error: type, message: str) -> None:
    write_exits(experiments / "exp" / "broken" / "exits.csv", [point(2, 1, math.nan)])
    with pytest.raises(error, match=message) as caught:
        compare_models(words)
    assert type(caught.value) is error and "\n" not in str(caught.value)


def test_the_picture_has_a_curve_a_model_and_a_mark_a_policy(experiments: Path) -> None:
    (panel,) = make_models_figure(read_models(WORDS)[0], ["test"], "title").axes
    curves = {line.get_label(): line for line in panel.get_lines()}
    drawn = [[list(axis) for axis in (line.get_xdata(), line.get_ydata())] for line in curves.values()]
    assert [[12.5, 24.04], [40.0, 10.0]] in drawn and [[12.25, 24.0], [30.0, 20.0]] in drawn
    assert [[16.0], [30.0]] in drawn and [[20.24], [20.0]] in drawn
    assert panel.get_xscale() == "linear"
    legend = [text.get_text() for text in panel.figure.legends[0].get_texts()]
    assert legend == ["EE", "one exit", "entropy", "learned"]
    # Also one model of one exit is one of those that were trained each for its exit.
    (panel,) = make_models_figure(read_models(["EE=exp/ee", "one exit=exp/d2"])[0], ["test"], "title").axes
    assert [line.get_linestyle() for line in panel.get_lines() if len(line.get_xdata()) and line.get_linestyle() != "None"] == [
        "-",
        ":",
    ]


def test_every_policy_has_a_mark_of_its_own() -> None:
    marks = [POLICIES.get(name, OTHER_POLICY) for name in REGISTERED if name != "fixed"]
    assert len({mark for _, mark in marks}) == len({colour for colour, _ in marks}) == len(marks)
    page = Path(picture.__file__).with_name("report.js").read_text(encoding="utf-8")
    drawn = re.findall(r"""[ {]"?(\S)"?: "M""", page[page.index("const MARKS") : page.index("const seriesOf")])
    assert {mark for _, mark in marks} <= set(drawn)


def test_very_unlike_models_are_drawn_on_a_logarithmic_scale(experiments: Path) -> None:
    write_exits(experiments / "exp" / "large" / "exits.csv", [point(12, 0, 7e9)])
    (panel,) = make_models_figure(read_models(["EE=exp/ee", "large=exp/large"])[0], ["test"], "title").axes
    assert panel.get_xscale() == "log" and "GMACs" in panel.get_xlabel()
    panel.figure.canvas.draw()
    ticks = [tick for tick in panel.get_xticks() if panel.get_xlim()[0] <= tick <= panel.get_xlim()[1]]
    assert len(ticks) >= 3 and all(f"{tick:e}"[0] in "125" for tick in ticks)
    assert {f"{tick:g}" for tick in ticks} <= {label.get_text() for label in panel.get_xticklabels()}


def test_an_environment_is_read_back(tmp_path: Path) -> None:
    facts = {"git hash": "1f", "command": "./run.sh --note 'a `b`'", "date": ""}
    (tmp_path / "page").write_text("\n".join(["- a: `b`", "## Environments", "", *environment_lines(facts)]))
    assert read_environment(tmp_path / "page") == {"git hash": "1f", "command": "./run.sh --note 'a 'b''"}
    assert read_environment(tmp_path / "none") == {}
