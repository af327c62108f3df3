"""Every column of the page, of exits.csv, of the picture and of the calibration, computed by hand.

Six utterances (dev) and four of them (test), see conftest. Word errors at exits 2, 4 and 6, words, characters:

=====  =====  =====  =====  =====  ==========  ==============================================================
utt    at 2   at 4   at 6   words  characters  character errors at 2, 4 and 6
=====  =====  =====  =====  =====  ==========  ==============================================================
a      2      1      0      3      11          5 (c>b, " sat" lost), 1 (t>d), 0
b      0      1      0      3      8           0, 3 (a>the), 0
c      1      0      0      1      5           5 (all lost), 0, 0
d      1      1      2      3      15          1 (w lost), 1, 2 (w and e lost)
e      1      1      0      1      2           3 (" go" too much), 1 (g>t), 0
f      1      0      1      3      11          2 (a>we), 0 (blanks are no characters of their own), 1 (e lost)
dev    6      4      3      14     52          16, 6, 3
test   5      2      3      10     42          13, 2, 3
=====  =====  =====  =====  =====  ==========  ==============================================================

Compute: units of the utterances a 4, b 2, c 1, d 3, e 2, f 5 (dev 17, test 13); a unit costs 3.5, 5.5, 7.5 MMACs at an exit
whose head alone is read, and 3.5, 6.0, 8.5 when the heads below are read, too. Audio: dev 8 s, test 6 s.
Time: units a 5, b 2, c 1, d 3, e 3, f 2 (dev 16, test 11) of 0.04, 0.08, 0.16 s.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import jiwer
import numpy as np
import pytest
import yaml

from espnet_ee.score.calibrate import Target, calibrate_policies
from espnet_ee.score.experiment import ScoreOptions, score_experiment
from espnet_ee.score.grid import Grid
from espnet_ee.score.page import Page
from espnet_ee.score.picture import make_figure
from espnet_ee.score.points import COLUMNS, read_exits
from tests.score.conftest import HYPOTHESES, REFERENCES, SETS

ERRORS = {"a": (2, 1, 0), "b": (0, 1, 0), "c": (1, 0, 0), "d": (1, 1, 2), "e": (1, 1, 0), "f": (1, 0, 1)}
WORDS = {"a": 3, "b": 3, "c": 1, "d": 3, "e": 1, "f": 3}


def score(experiment: Path, **options: object) -> Page:
    root = experiment.parent.parent / "data"
    return score_experiment(ScoreOptions(experiment, root, "dev", ["test"], command="./run.sh", **options))


# --- intervals, resample by resample ----------------------------------------------------------------------------------


def resampled(names: str, errors: Sequence[float]) -> list[float]:
    """WER of every resample, added up utterance by utterance."""
    draws = np.random.default_rng(0).multinomial(len(names), [1 / len(names)] * len(names), size=2000).tolist()
    return [
        100
        * sum(times * error for times, error in zip(drawn, errors, strict=True))
        / sum(times * WORDS[u] for times, u in zip(drawn, names, strict=True))
        for drawn in draws
    ]


def interval(values: Sequence[float]) -> str:
    """The values a fortieth from both ends, between two neighbours by a straight line."""
    ordered, ends = sorted(values), []
    for share in (0.025, 0.975):
        place = share * (len(ordered) - 1)
        below = int(place)
        ends.append(ordered[below] + (place - below) * (ordered[min(below + 1, len(ordered) - 1)] - ordered[below]))
    return f"[{ends[0]:.2f}, {ends[1]:.2f}]"


def at(names: str, exits: str) -> list[int]:
    """Word errors of utterances at these exits (a digit each)."""
    return [ERRORS[utt]["246".index(layer)] for utt, layer in zip(names, exits, strict=True)]


def wer(names: str, exits: str) -> str:
    errors = at(names, exits)
    rate = 100 * sum(errors) / sum(WORDS[utt] for utt in names)
    return f"{rate:.2f} {interval(resampled(names, errors))}"


def over_fixed(names: str, exits: str, share: float, points: str) -> str:
    """Against drawing exit 4 with this share, else exit 2."""
    fixed = zip(at(names, "2" * len(names)), at(names, "4" * len(names)), strict=True)
    line = [(1 - share) * low + share * high for low, high in fixed]
    pairs = zip(resampled(names, at(names, exits)), resampled(names, line), strict=True)
    return f"{points} {interval([ours - theirs for ours, theirs in pairs])}"


# --- the calibration --------------------------------------------------------------------------------------------------


def test_calibration(grid: Grid) -> None:
    """Entropies below the last exit, sorted: .12 .15 .18 .20 .25 .28 .30 .35 .40 .45 .50 .60; thresholds lie midway and beyond.

    From the shallowest on, threshold (who moves to which exit): errors, sum of the exit layers:
    2 (all at 2): 6, 12;  .55 (c to 4): 5, 14;  .475 (a to 4): 4, 16;  .425 (e to 4): 4, 18;  .375 (d to 4): 4, 20;
    .325 (e to 6): 3, 22;  .29 (a to 6): 2, 24;  .265 (f to 4): 1, 26;  .225 (d to 6): 2, 28;  .19 (b to 4): 3, 30;
    .165 (f to 6): 4, 32;  .135 (b to 6): 3, 34;  0 (c to 6): 3, 36.
    Smoothed so that errors never rise: 6 5 4 4 4 3, then 18/7 for the last seven (2 1 2 3 4 3 3).
    """
    targets = (
        "wer_loss=0 wer_loss=34 wer_loss=-14 wer_loss=-20 mean_layer=4 mean_layer=3.99 macs_per_second=1 macs_per_second=9e6"
    )
    pairs = [target.split("=") for target in targets.split()]
    calibrated = calibrate_policies(grid, ["entropy"], [Target(kind, float(value)) for kind, value in pairs], [])
    thresholds = {one.name.removeprefix("entropy_"): one.policy.threshold for one in calibrated}
    assert thresholds == {
        "wer_loss0": 0.325,  # at most 3 errors: the first whose own and whose smoothed errors are
        "wer_loss34": 0.475,  # at most 4.02
        "wer_loss-14": 0.29,  # at most 2.58: 18/7 is 2.571, and its own are 2
        "wer_loss-20": 0.265,  # at most 2.4, which nothing smoothed meets: the fewest errors
        "mean_layer4": 0.29,  # 24/6
        "mean_layer3.99": 0.325,  # 22/6
        "macs_per_second1": 2.0,  # none: the shallowest
        # d, e, f and b at 2, a and c at 4: 3.5 (3 + 2 + 5 + 2) + 6 (4 + 1) = 72 MMACs in 8 s
        "macs_per_second9000000": 0.475,
    }
    assert [one.name for one in calibrated if "NOT REACHED" in str(one)] == [one.name for one in calibrated if not one.reached]
    assert str(calibrated[0]).endswith("final exit: 21.43 % WER at mean exit layer 3.67")
    assert [one.name for one in calibrated if not one.reached] == ["entropy_wer_loss-20", "entropy_macs_per_second1"]


def test_configurations_and_promises(experiment: Path) -> None:
    text = (experiment / "policies" / "decode_entropy_wer_loss34.yaml").read_text(encoding="utf-8")
    assert text.startswith(
        "# Calibrated on dev for: at most 34 % relative WER above the final exit. Expected there: 28.57 % WER,"
    )
    assert yaml.safe_load(text)["policy_conf"] == {"threshold": 0.475}
    points = {point.name: point for point in read_exits(experiment / "policies" / "promises.csv")}
    assert {name: (point.words.errors, point.kind, point.set) for name, point in points.items()} == {
        "entropy_wer_loss0": (3, "promise", "dev"),
        "entropy_wer_loss34": (4, "promise", "dev"),
        "entropy_macs_per_second1": (6, "promise", "dev"),
    }
    missed = (experiment / "policies" / "decode_entropy_macs_per_second1.yaml").read_text(encoding="utf-8")
    assert "NOT REACHED" in missed and "NOT REACHED" not in text


# --- the page ---------------------------------------------------------------------------------------------------------


def test_the_tables_of_the_page(experiment: Path) -> None:
    score(experiment)
    lines = (experiment / "RESULTS.md").read_text(encoding="utf-8").splitlines()
    # Thresholds .325 and .475 stop a c d f at 4 4 4 2 and 4 4 2 2, and b, e at 2, 6 and 2, 2. Fixed line, test: exit 2 costs
    # 13 * 3.5 / 6 = 7.583, exit 4 11.917 MMACs/s; .325 costs (24 + 6 + 18 + 17.5) / 6 = 10.917, so 10/13 of the way: 5 - 3 * 10/13
    # errors in 10 words are 26.92 %. .475: (24 + 6 + 10.5 + 17.5) / 6 = 9.667, 25/52 of the way, 35.58 %.
    start = lines.index("## test (4 utterances)")
    assert lines[start + 2 : start + 11] == [
        "|exit or policy|WER % [95 %]|CER %|mean exit layer|MMACs/s|compute %|RTF|WER - fixed line|online = replay|",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
        f"|exit 2|{wer('acdf', '2222')}|30.95|2.00|7.6|46.7|0.0733*|-|-|",  # 13 of 42; 45.5 MMACs in 6 s, of 97.5; 0.44 s
        f"|exit 4|{wer('acdf', '4444')}|4.76|4.00|11.9|73.3|0.1467*|-|-|",  # 2 of 42; 71.5; 0.88 s
        f"|exit 6|{wer('acdf', '6666')}|7.14|6.00|16.2|100.0|0.2933*|-|-|",  # 3 of 42; 97.5 (16.25); 1.76 s
        # characters a 1, d 1, f 2; layers 14/4; 65.5 of 97.5; measured online
        f"|entropy_wer_loss0|{wer('acdf', '4442')}|9.52|3.50|10.9|67.2|0.0500|"
        f"{over_fixed('acdf', '4442', 10 / 13, '+3.08')}|yes|",
        # 58 of 97.5; time a .4, c .08, d .12, f .08
        f"|entropy_wer_loss34|{wer('acdf', '4422')}|9.52|3.00|9.7|59.5|0.1133*|{over_fixed('acdf', '4422', 25 / 52, '-5.58')}|-|",
        f"|entropy_macs_per_second1 (**target not reached**)|{wer('acdf', '2222')}|30.95|2.00|7.6|46.7|0.0733*|+0.00 [0.00, 0.00]|-|",
        # a 6, c 4, d 2 and f 4, the first of equals: 30 + 5.5 + 10.5 + 27.5 = 73.5 MMACs; .8 + .08 + .12 + .16 s; d's one character
        f"|oracle|{wer('acdf', '6424')}|2.38|4.00|12.2|75.4|0.1933*|-|-|",
    ]
    assert "50.00 [" in lines[start + 4] and "20.00 [" in lines[start + 5] and "10.00 [" in lines[start + 10]
    # Fixed line, dev: 17 * 3.5 / 8 = 7.4375 and 17 * 5.5 / 8 = 11.6875; .325 costs 89.5 / 8 = 11.1875, 15/17 of the way (30.25 %),
    # .475 costs 72 / 8 = 9, 25/68 of the way (37.61 %).
    start = lines.index("## dev (6 utterances; the policies are calibrated on it)")
    assert lines[start + 4 : start + 11] == [
        f"|exit 2|{wer('abcdef', '222222')}|30.77|2.00|7.4|46.7|0.0800*|-|-|",  # 16 of 52; 59.5 of 127.5; 0.64 s
        f"|exit 4|{wer('abcdef', '444444')}|11.54|4.00|11.7|73.3|0.1600*|-|-|",
        f"|exit 6|{wer('abcdef', '666666')}|5.77|6.00|15.9|100.0|0.3200*|-|-|",
        f"|entropy_wer_loss0|{wer('abcdef', '424462')}|7.69|3.67|11.2|70.2|0.1700*|"
        f"{over_fixed('abcdef', '424462', 15 / 17, '-8.82')}|-|",
        f"|entropy_wer_loss34|{wer('abcdef', '424222')}|13.46|2.67|9.0|56.5|0.1100*|"
        f"{over_fixed('abcdef', '424222', 25 / 68, '-9.03')}|-|",
        f"|entropy_macs_per_second1 (**target not reached**)|{wer('abcdef', '222222')}|30.77|2.00|7.4|46.7|0.0800*|+0.00 [0.00, 0.00]|-|",
        # b and d stop at 2 and c and f at 4: 30 + 7 + 5.5 + 10.5 + 15 + 27.5 = 95.5 MMACs
        f"|oracle|{wer('abcdef', '624264')}|1.92|4.00|11.9|74.9|0.2150*|-|-|",
    ]


def test_the_rest_of_the_page(experiment: Path) -> None:
    score(experiment, notes=["hand-made", " "])
    text = (experiment / "RESULTS.md").read_text(encoding="utf-8")
    dev, test = ("abcdef", "acdf")
    for line in (
        # Sentences, words, then per cent: hits, substitutions, deletions, insertions, errors, wrong sentences
        "|exit 2/dev|6|14|64.3|21.4|14.3|7.1|42.9|83.3|",  # of 14 words 3 substituted (a d f), 2 lost (a c), 1 too much (e)
        "|exit 4/dev|6|14|71.4|28.6|0.0|0.0|28.6|66.7|",
        "|exit 6/test|4|10|70.0|30.0|0.0|0.0|30.0|50.0|",  # d twice, f
        "|entropy_wer_loss0/test|4|10|70.0|30.0|0.0|0.0|30.0|75.0|",
        "|oracle/test|4|10|90.0|10.0|0.0|0.0|10.0|25.0|",
        "|exit 2/dev|6|52|76.9|3.8|19.2|7.7|30.8|83.3|",  # characters: 2 substituted, 4 + 5 + 1 lost, 3 + 1 too many
        "|exit 4/dev|6|52|92.3|5.8|1.9|3.8|11.5|66.7|",  # substituted in a, b, e; lost in d; two too many in b
        # Promised: 3, 4, 6 of 14, against 3 at the last exit; delivered: 3, 3, 5 of 10, against 3
        f"|entropy_wer_loss0|at most 0 % relative WER above the final exit|{wer(dev, '424462')}|3.67|+0.0|{wer(test, '4442')}|3.50|+0.0|",
        f"|entropy_wer_loss34|at most 34 % relative WER above the final exit|{wer(dev, '424222')}|2.67|+33.3|{wer(test, '4422')}|3.00|+0.0|",
        f"|entropy_macs_per_second1|at most 1e-06 MMACs per second|{wer(dev, '222222')}|2.00|+100.0|{wer(test, '2222')}|2.00|+66.7|",
        "|policy/dataset|exit 2|exit 4|exit 6|",
        "|entropy_wer_loss0/test|1|3|0|",
        "|entropy_wer_loss0/dev|2|3|1|",
        "|entropy_wer_loss34/dev|4|2|0|",
        # At exit 2, the least compute: a and c lose 2 and 1 words against exit 6; d gains one, f none
        "## Hurt most by stopping early: entropy_macs_per_second1/test",
        "|a|2|2|0|the bat|the cat sat|",
        "|c|2|1|0||hello|",
        "- entropy_wer_loss0: online = replay: yes (4 utterances: same exits, same text, same MACs)",
        "- parameters: `1,234,567`",
        "- note: hand-made",
    ):
        assert line in text.splitlines(), line
    assert text.index("|a|2|2|0|") < text.index("|c|2|1|0|")  # the worst first
    assert text.count("- note: ") == 1
    assert "|d|2|" not in text


def test_exits_csv(experiment: Path) -> None:
    score(experiment)
    with (experiment / "exits.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    by = {(row["set"], row["kind"], row["name"]): row for row in rows}
    kinds = ["fixed"] * 3 + ["sweep"] * 13 + ["calibrated"] * 3
    assert [row["kind"] for row in rows if row["set"] == "test"] == [*kinds, "online", "oracle"]
    assert [row["kind"] for row in rows if row["set"] == "dev"] == [*kinds[:16], *["promise"] * 3, *kinds[16:], "oracle"]
    row = by["test", "online", "entropy_wer_loss0"]
    assert {key: row[key] for key in COLUMNS if not key.startswith(("wer", "cer", "over", "macs"))} == {
        "set": "test",
        "kind": "online",
        "name": "entropy_wer_loss0",
        "policy": "entropy",
        "threshold": "0.325",
        "target": "at most 0 % relative WER above the final exit",
        "reached": "True",
        "depth": "3.5",
        "rtf": "0.05",
        "equals_replay": "True",
        "loss": "",
        "loss_bound": "",
        "word_sentences": "4",
        "word_tokens": "10",
        "word_hits": "7",
        "word_substitutions": "3",
        "word_deletions": "0",
        "word_insertions": "0",
        "word_wrong_sentences": "3",
        "character_sentences": "4",
        # a: t>d; d: w lost; f: a>we
        "character_tokens": "42",
        "character_hits": "39",
        "character_substitutions": "2",
        "character_deletions": "1",
        "character_insertions": "1",
        "character_wrong_sentences": "3",
    }
    assert float(row["wer"]) == 30.0 and float(row["cer"]) == pytest.approx(400 / 42)
    assert float(row["macs_per_second"]) == pytest.approx(65.5e6 / 6)
    assert float(row["over_fixed"]) == pytest.approx(30 - 10 * (5 - 30 / 13))
    shown = over_fixed("acdf", "4442", 10 / 13, "+3.08")
    assert shown == f"+3.08 [{float(row['over_fixed_low']):.2f}, {float(row['over_fixed_high']):.2f}]"
    assert wer("acdf", "4442") == f"30.00 [{float(row['wer_low']):.2f}, {float(row['wer_high']):.2f}]"
    # The sweep: what the calibration tried, on the other set. .265 stops a c d f at 6 4 4 4.
    sweep = {float(row["threshold"]): row for row in rows if row["kind"] == "sweep" and row["set"] == "test"}
    assert list(sweep) == [2, 0.55, 0.475, 0.425, 0.375, 0.325, 0.29, 0.265, 0.225, 0.19, 0.165, 0.135, 0]
    assert (float(sweep[0.265]["depth"]), sweep[0.265]["word_substitutions"], sweep[0.265]["policy"]) == (4.5, "1", "entropy")
    assert float(sweep[0.265]["rtf"]) == pytest.approx((0.8 + 0.08 + 0.24 + 0.16) / 6)


def test_the_picture(experiment: Path) -> None:
    """Compute lies across, the error rate up; the line of the fixed exits, the sweep, calibrated points with bars, the oracle."""
    page = score(experiment)
    figure = make_figure(page.sets[0].points, ["test"], "ee")
    [panel] = figure.axes
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("compute (MMACs per second of audio)", "word error rate (%)")
    lines = [np.round(line.get_xydata(), 3).tolist() for line in panel.get_lines()]
    assert [[7.583, 50.0], [11.917, 20.0], [16.25, 30.0]] in lines  # fixed
    assert [[12.25, 10.0]] in lines  # oracle
    for point in ([10.917, 30.0], [9.667, 30.0], [7.583, 50.0]):  # calibrated
        assert [point] in lines
    [sweep] = [line for line in lines if len(line) == 13]
    assert sweep[0] == [7.583, 50.0] and sweep[-1] == [18.417, 30.0]  # 13 * 8.5 / 6: all heads are read
    low, high = (float(end) for end in interval(resampled("acdf", at("acdf", "4442")))[1:-1].split(", "))
    bars = [bar.tolist() for bars in panel.collections for bar in bars.get_segments()]
    assert any(np.allclose(bar, [[10.917, low], [10.917, high]], atol=0.01) for bar in bars)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["fixed exits (number: the block)", "entropy", "oracle (a bound)"]


# --- and what holds around it -----------------------------------------------------------------------------------------


def test_a_rerun_writes_the_same_bytes_and_aligns_nothing(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("RESULTS.md", "exits.csv", "curve.png", "decode_every_exit/test/errors.tsv")
    score(experiment)
    before = [(experiment / name).read_bytes() for name in names]

    def refuse(*_: object) -> None:
        raise AssertionError("aligned again")

    monkeypatch.setattr(jiwer, "process_words", refuse)
    monkeypatch.setattr(jiwer, "process_characters", refuse)
    score(experiment)
    assert [(experiment / name).read_bytes() for name in names] == before
    assert not [path for path in experiment.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize("name", SETS)
def test_the_counts_shown_are_those_of_jiwer(experiment: Path, name: str) -> None:
    page = score(experiment)
    points = {point.name: point for result in page.sets if result.name == name for point in result.points}
    for index, layer in enumerate((2, 4, 6)):
        words, characters = points[f"exit {layer}"].words, points[f"exit {layer}"].characters
        pairs = [(REFERENCES[utt], " ".join(HYPOTHESES[utt][index].split())) for utt in SETS[name]]
        said = jiwer.process_words(*(list(side) for side in zip(*pairs, strict=True)))
        assert (words.hits, words.substitutions, words.deletions, words.insertions) == (
            *(said.hits, said.substitutions, said.deletions, said.insertions),
        )
        assert words.rate == pytest.approx(100 * said.wer)
        assert characters.rate == pytest.approx(
            100 * jiwer.process_characters(*(list(s) for s in zip(*pairs, strict=True))).cer
        )
