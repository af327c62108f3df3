"""Word confidences: what they are worth, and the map that makes them mean what they say."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from espnet_ee.errors import UserError
from espnet_ee.kaldi import write_scp
from espnet_ee.policy.confidences import ConfidenceMap
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.table import EvidenceTable, Utterance, read_table, write_table
from espnet_ee.score.calibrate import calibrate_policies, parse_target, write_calibrated
from espnet_ee.score.confidences import expected_calibration_error, fit_confidences, fit_knots, judged_words, reliabilities
from espnet_ee.score.grid import Grid, make_grid
from espnet_ee.score.wer import right_words
from tests.score.conftest import make_table
from tests.score.test_calibrate import make_set
from tests.score.test_experiment import quick_picture, score  # noqa: F401

SHARES = st.floats(0, 1)


def with_confidences(count: int, seed: int) -> tuple[EvidenceTable, dict[str, str]]:
    """A made set whose exits are too sure of themselves, the shallow ones most: of words with c, c to a power are right."""
    table, references = make_set(count, seed)
    random = np.random.default_rng(seed)
    utterances = {}
    for utt, utterance in table.utterances.items():
        rows = []
        for place, row in enumerate(utterance.rows):
            said = random.beta(8, 2, 10)
            right = random.uniform(size=10) < said ** (4 - place)
            words = [word if good else "X" for word, good in zip(references[utt].split(), right, strict=True)]
            rows.append(replace(row, hypothesis=" ".join(words), confidences=tuple(said.round(4).tolist())))
        utterances[utt] = Utterance(utterance.audio_seconds, tuple(rows))
    return EvidenceTable(table.exit_layers, utterances), references


def make(name: str, count: int, seed: int) -> Grid:
    return make_grid(name, *with_confidences(count, seed))


@pytest.mark.parametrize("count", [100, 400])
def test_on_other_utterances_mapped_confidences_mean_what_they_say(count: int) -> None:
    confidences = fit_confidences(make("dev", count, 1))
    found = reliabilities(make("test", 300, 2), confidences)
    assert [one.layer for one in found] == [2, 4, 6, 8] and all(one.words == 3000 for one in found)
    assert [one.error > 0.05 for one in found] == [True, True, True, False]
    assert max(one.mapped for one in found) <= 0.05, found


@given(said=st.lists(SHARES, min_size=1, max_size=300), seed=st.integers(0, 99))
def test_a_map_is_monotone_and_within_0_and_1(said: list[float], seed: int) -> None:
    right = np.random.default_rng(seed).integers(0, 2, len(said))
    knots = fit_knots(np.array(said), right)
    confidences = ConfidenceMap({2: knots})
    assert ConfidenceMap.from_mapping(confidences.to_mapping()) == confidences
    mapped = [confidences(2, value) for value in np.linspace(0, 1, 101)]
    assert all(0 < a <= b + 1e-12 and b < 1 for a, b in pairwise(mapped))
    assert len(knots) <= max(1, len(said) // 25)


def test_a_level_of_the_regression_is_one_of_the_map() -> None:
    said = np.linspace(0.01, 0.99, 300)
    confidences = ConfidenceMap({2: fit_knots(said, (said > 0.5).astype(int))})  # twelve groups, on two levels
    assert [round(confidences(2, value), 2) for value in (0.1, 0.3, 0.45, 0.55, 0.7, 0.9)] == [0.02] * 3 + [0.98] * 3


@given(value=SHARES)
def test_without_a_map_confidences_stay(value: float) -> None:
    assert ConfidenceMap()(2, value) == value
    assert ConfidenceMap({4: ((0.5, 0.5),)})(2, value) == value


def test_between_knots_lie_straight_lines_and_beyond_them_the_nearest_holds() -> None:
    confidences = ConfidenceMap({2: ((0.4, 0.1), (0.6, 0.3), (1.0, 0.9))})
    assert confidences.to_mapping() == {2: {"said": [0.4, 0.6, 1.0], "right": [0.1, 0.3, 0.9]}}  # as files have it
    values = [0.0, 0.4, 0.5, 0.6, 0.8, 1.0]
    assert [confidences(2, value) for value in values] == pytest.approx([0.1, 0.1, 0.2, 0.3, 0.6, 0.9])


def test_the_error_is_the_distance_of_what_is_said_and_what_is_right() -> None:
    said, right = np.array([0.05, 0.05, 0.95, 0.95, 1.0]), np.array([0, 1, 0, 1, 1])  # too little below, as much too much above
    assert expected_calibration_error(said, right) == pytest.approx((2 * 0.45 + 3 * 0.3) / 5)
    assert expected_calibration_error(np.array([]), np.array([])) == 0


@pytest.mark.parametrize(
    ("reference", "hypothesis", "right"),
    [
        ("a b c", "a x c", [True, False, True]),
        ("a b c", "a c", [True, True]),
        ("a c", "a b c", [True, False, True]),
        ("", "a b", [False, False]),
        ("a", "", []),
        ("fin", "\ufb01n", [True]),  # one letter, in normal form two
        ("a b", "a\u200bb", None),  # an invisible blank: one word with one confidence, scored as two
    ],
)
def test_a_word_is_right_where_the_alignment_says_so(reference: str, hypothesis: str, right: list[bool] | None) -> None:
    [own, other] = right_words([(reference, hypothesis), ("q", "q")])
    assert (None if own is None else own.tolist()) == right
    assert other.tolist() == [True]


def test_evidence_without_confidences_gives_no_map(grid: Grid) -> None:
    assert judged_words(grid) == {} and fit_confidences(grid) == ConfidenceMap() and reliabilities(grid, ConfidenceMap()) == []


def as_text(table: EvidenceTable) -> str:
    """To compare: evidence that nobody made is nan, which equals nothing."""
    return json.dumps(asdict(table), default=float)


def test_confidences_survive_the_evidence_table(tmp_path: Path) -> None:
    table, _ = with_confidences(5, 1)
    write_table(tmp_path / "evidence.tsv", table)
    assert as_text(read_table(tmp_path / "evidence.tsv")) == as_text(table)
    text = (tmp_path / "evidence.tsv").read_text()
    for old, new in (("word_confidences", "luck"), (text.split("\t")[-1].split()[0], "1.5"), (text.split("\t")[-1], "0.5\n")):
        (tmp_path / "broken.tsv").write_text(text.replace(old, new))
        with pytest.raises(UserError, match=r"broken.tsv:\d+: "):
            read_table(tmp_path / "broken.tsv")


def test_an_older_table_without_them_is_read(tmp_path: Path) -> None:
    write_table(tmp_path / "evidence.tsv", make_table())
    lines = (tmp_path / "evidence.tsv").read_text().splitlines()
    (tmp_path / "older.tsv").write_text("".join(line.rpartition("\t")[0] + "\n" for line in lines))
    assert as_text(read_table(tmp_path / "older.tsv")) == as_text(make_table())


def test_calibration_writes_the_map_into_every_configuration(tmp_path: Path) -> None:
    dev = make("dev", 100, 1)
    targets = [parse_target("mean_layer=4"), parse_target("wer_loss=5")]
    calibrated = calibrate_policies(dev, ["entropy", "patience"], targets, [])
    paths = write_calibrated(tmp_path, calibrated, "dev")
    read = [DecodingConfig.read(path) for path in paths]
    assert [one.config_in(DecodingConfig()) for one in calibrated] == read and {
        one.confidences for one in map(_hashable, read)
    } != {()}
    assert all(sorted(one.confidences.knots) == [2, 4, 6, 8] for one in read)
    assert max(map(len, paths[0].read_text().splitlines())) <= 140 and len(paths[0].read_text().splitlines()) < 40


def _hashable(config: DecodingConfig) -> DecodingConfig:
    return replace(config, confidences=tuple(config.confidences.knots.items()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "broken",
    [
        [0.5],
        {"two": {"said": [0.5], "right": [0.5]}},
        {0: {"said": [0.5], "right": [0.5]}},
        {2: [0.5, 0.5]},
        {2: {"said": [0.5]}},
        {2: {"said": [], "right": []}},
        {2: {"said": [0.5, 0.4], "right": [0.1, 0.2]}},
        {2: {"said": [0.4, 0.5], "right": [0.2, 0.1]}},
        {2: {"said": [0.5], "right": [1.5]}},
        {2: {"said": [0.5], "right": [float("nan")]}},
        {2: {"said": [0.5], "right": ["sure"]}},
        {2: {"said": [True], "right": [0.5]}},
        {2: {"said": [n / 200 for n in range(101)], "right": [0.5] * 101}},
    ],
)
def test_a_broken_map_is_one_line(broken: object) -> None:
    with pytest.raises(UserError, match=r"^decode.yaml: confidences: .*calibrate again$"):
        DecodingConfig.from_mapping({"confidences": broken}, "decode.yaml")


def test_the_page_tells_their_error_before_and_after(experiment: Path) -> None:
    for name, seed in (("dev", 1), ("test", 2)):
        table, references = with_confidences(60, seed)
        write_table(experiment / f"decode_every_exit/{name}/evidence.tsv", table)
        (experiment / f"decode_every_exit/{name}/timing.tsv").unlink()
        write_scp(experiment.parents[1] / f"data/{name}/text", references)
    dev = make_grid("dev", *with_confidences(60, 1))
    write_calibrated(experiment / "policies", calibrate_policies(dev, ["entropy"], [parse_target("mean_layer=4")], []), "dev")
    shutil.rmtree(experiment / "decode_entropy_wer_loss0")
    lines = score(experiment).splitlines()
    rows = [line.strip("|").split("|") for line in lines[lines.index("## Word confidences") :] if line.startswith("|exit")]
    rows = [row for row in rows if len(row) == 6 and row[0] != "exit/dataset"]
    assert [row[0] for row in rows] == [f"exit {layer}/{name}" for name in ("test", "dev") for layer in (2, 4, 6, 8)]
    assert all(row[1] == "600" for row in rows) and float(rows[0][4]) > 0.2 > 0.08 > float(rows[0][5])
