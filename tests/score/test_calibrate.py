"""Calibration and replay, on sets made by chance whose errors follow their evidence."""

from __future__ import annotations

import csv
import importlib.util
import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest

from espnet_ee.errors import UsageError, UserError
from espnet_ee.kaldi import write_scp
from espnet_ee.policy.base import choose_exit
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.evidence import ExitEvidence
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.policy.registry import POLICIES, build_policy
from espnet_ee.policy.table import EvidenceRow, EvidenceTable, Utterance, write_table
from espnet_ee.score.bootstrap import difference, draws, wer_interval
from espnet_ee.score.calibrate import (
    Family,
    calibrate,
    calibrate_policies,
    make_families,
    parse_target,
    write_calibrated,
)
from espnet_ee.score.evaluate import hurt_most
from espnet_ee.score.fit import (
    DEFAULT_FEATURES,
    Samples,
    cross_fitted_levels,
    fit_learned,
    folds,
    likely_returns,
    make_samples,
    returns,
)
from espnet_ee.score.grid import (
    Grid,
    candidate_thresholds,
    exits_at,
    exits_of,
    fixed_outcomes,
    levels,
    make_grid,
    outcome,
    read_grid,
)
from espnet_ee.score.imported import NEEDED, is_imported, read_imported
from espnet_ee.score.outcome import Outcome, at_cost
from espnet_ee.score.replay import replay_table

LAYERS = (2, 4, 6, 8)
NAMES = ("entropy", "confidence", "patience", "posterior", "learned")


def make_set(count: int, seed: int) -> tuple[EvidenceTable, dict[str, str]]:
    """Sentences of ten words of which a shallow exit gets more wrong, and is less sure of them, than a deep one."""
    random = np.random.default_rng(seed)
    utterances, references = {}, {}
    for number in range(count):
        truth = [f"W{i}" for i in random.integers(0, 50, 10)]
        difficulty = random.uniform(0, 1)
        wrong_at = random.uniform(0, 1, 10)
        rows = []
        for index, layer in enumerate(LAYERS):
            wrong = wrong_at < difficulty * (0.7, 0.45, 0.3, 0.2)[index]
            words = ["X" if bad else word for bad, word in zip(wrong, truth, strict=True)]
            share = float(wrong.mean())
            noise = random.uniform(0, 0.3, 4)
            evidence = ExitEvidence(
                layer, tuple(int(w[1:] or 60) for w in words), 0.01 + 0.05 * (share + 3 * noise[0]), 0.95 - 0.3 * share, 0.5, -1.0, 50,
                (-1.0, -1.5 - 3 * (1 - share) + noise[3]), 0.95 - 0.4 * (share + noise[1]), 0.9 - 0.8 * (share > 0) + noise[2] / 3,
            )  # fmt: skip
            rows.append(EvidenceRow(evidence, " ".join(words), 1000000 * layer, 50000))
        name = f"u{number:04d}"
        utterances[name] = Utterance(float(random.uniform(1, 5)), tuple(rows))
        references[name] = " ".join(truth)
    return EvidenceTable(LAYERS, utterances), references


def make(name: str, count: int, seed: int) -> Grid:
    return make_grid(name, *make_set(count, seed))


@pytest.fixture(scope="module")
def dev() -> Grid:
    return make("dev", 120, 1)


@pytest.fixture(scope="module")
def test_set() -> Grid:
    return make("test", 120, 2)


def write(folder: Path, count: int, seed: int) -> tuple[Path, Path]:
    table, references = make_set(count, seed)
    write_table(folder / "evidence.tsv", table)
    write_scp(folder / "text", references)
    return folder / "evidence.tsv", folder / "text"


@pytest.mark.parametrize("name", NAMES)
def test_the_arrays_say_what_the_replay_says(dev: Grid, name: str) -> None:
    [family] = make_families(dev, [name], DEFAULT_FEATURES)
    for policy in family.policies[:: max(1, len(family.policies) // 7)]:
        slow = [choose_exit(policy, dev.table.utterances[utt].evidence) for utt in dev.utterances]
        assert exits_of(dev, policy).tolist() == slow


def test_a_policy_pays_for_the_heads_it_passes_and_a_fixed_exit_for_one(dev: Grid) -> None:
    last = np.full(len(dev.utterances), len(LAYERS) - 1)
    alone, passed = (outcome(dev, last, every).macs.sum() / len(last) for every in (False, True))
    assert passed - alone == 3 * 50000
    assert fixed_outcomes(dev)[-1].macs.sum() == alone * len(last)


@pytest.mark.parametrize("name", ["fixed", *NAMES])
@pytest.mark.parametrize("target", ["wer_loss=1", "wer_loss=20", "macs_per_second=2e6", "mean_layer=5"])
def test_a_calibrated_policy_meets_its_target_or_says_so(dev: Grid, name: str, target: str) -> None:
    [family] = make_families(dev, [name], DEFAULT_FEATURES)
    final = fixed_outcomes(dev)[-1].wer
    found = calibrate(family, parse_target(target))
    kind, value = target.split("=")
    reached = {
        "wer_loss": lambda o: o.wer <= final * (1 + float(value) / 100) + 1e-9,
        "macs_per_second": lambda o: o.macs_per_second <= float(value),
        "mean_layer": lambda o: o.depth <= float(value),
    }[kind]
    assert found.reached == reached(found.expected)
    assert found.reached == any(map(reached, family.outcomes))
    if found.reached and kind == "mean_layer":
        assert found.expected.depth == max(o.depth for o in family.outcomes if reached(o))
    if name not in ("fixed", "learned"):
        assert outcome(dev, exits_of(dev, found.policy), True).errors.tolist() == found.expected.errors.tolist()


def test_one_lucky_threshold_is_not_believed() -> None:
    """The error rate falls with compute, but for one dip; without the dip, and on a plateau, the least compute that meets counts."""

    def calibrated(*errors: int) -> float:
        edits = [np.array([[1000 - e, e, 0, 0]]) for e in errors]
        outcomes = [Outcome(e, e, np.array([i + 1.0]), np.array([i]), np.ones(1)) for i, e in enumerate(edits)]
        final = replace(outcomes[0], words=np.array([[900, 100, 0, 0]]))
        return calibrate(Family([EntropyPolicy(0.0)] * len(errors), outcomes, final), parse_target("wer_loss=0")).expected.macs[
            0
        ]

    assert calibrated(300, 100, 250, 200, 150, 100) == 6
    assert calibrated(300, 250, 200, 150, 100, 100) == 5
    assert calibrated(300, 90, 100, 95, 100, 100) == 2


def test_an_unreachable_target_gives_the_nearest(dev: Grid) -> None:
    [family] = make_families(dev, ["entropy"], DEFAULT_FEATURES)
    found = calibrate(family, parse_target("macs_per_second=1"))
    assert not found.reached
    assert found.expected.depth == LAYERS[0]


@pytest.mark.parametrize(
    "bad",
    [
        "wer_loss",
        "luck=1",
        "wer_loss=much",
        "mean_layer=nan",
        "wer_loss=1@",
        "wer_loss=1@much",
        "wer_loss=1@100",
        "wer_loss=1@nan",
        "wer_loss=1@0.9",
        "wer_loss=1@49.9",
        "wer_loss=1@99.95",
        "mean_layer=6@90",
        "wer_loss=@90",
        "wer_loss=-1",
        "wer_loss=inf",
        "mean_layer=0",
        "mean_layer=-inf",
        "macs_per_second=0",
        "macs_per_second=-2e7",
    ],
)
def test_a_broken_target_is_refused(bad: str) -> None:
    with pytest.raises(UsageError, match=r"give wer_loss=1, wer_loss=1@90 \(.*\), macs_per_second=2e7 or mean_layer=6"):
        parse_target(bad)


def test_confidences_from_a_half_on_are_taken() -> None:
    for word, confidence in (("wer_loss=1@50", 50), ("wer_loss=1@99.9", 99.9), ("wer_loss=1", None)):
        assert parse_target(word).confidence == confidence


def test_the_learned_policy_beats_one_threshold_where_there_is_more_to_know(dev: Grid, test_set: Grid) -> None:
    entropy, learned = make_families(dev, ["entropy", "learned"], DEFAULT_FEATURES)
    curves = [[outcome(test_set, exits_of(test_set, p), True) for p in family.policies] for family in (entropy, learned)]
    costs = [point.macs_per_second for point in fixed_outcomes(test_set)]
    middle = np.linspace(costs[0], costs[-1], 9)[1:-1]
    by_entropy, by_learned = ([at_cost(curve, cost).wer for cost in middle] for curve in curves)
    assert np.mean(by_learned) < 0.97 * np.mean(by_entropy)
    assert all(one < 1.02 * other for one, other in zip(by_learned, by_entropy, strict=True))


def test_learned_goes_no_deeper_than_the_exit_that_none_improves(dev: Grid, test_set: Grid) -> None:
    """A model that thinks too long: its last exit is worse than the one before."""
    worse, worse_test = (replace(grid, words=grid.words[:, [0, 1, 2, 1]]) for grid in (dev, test_set))
    [family] = make_families(worse, ["learned"], DEFAULT_FEATURES)
    found = [outcome(worse_test, exits_of(worse_test, policy), True) for policy in family.policies]
    assert max(one.depth for one in found) == LAYERS[2]
    fixed = fixed_outcomes(worse_test)
    dearer = at_cost(found, fixed[-1].macs_per_second)
    assert dearer.wer < fixed[-1].wer
    assert max(one.depth for one in family.outcomes) <= LAYERS[2]


def test_what_learned_promises_is_judged_on_utterances_that_it_has_not_seen(dev: Grid) -> None:
    """Where it is fitted, the last exit is as good as the one before; of the others it is better: the promise needs it."""
    seen, words = np.isin(folds(120), (0, 3, 6)), dev.words.copy()
    words[seen, 3] = words[seen, 2]
    [found] = calibrate_policies(replace(dev, words=words), ["learned"], [parse_target("wer_loss=1@90")], DEFAULT_FEATURES)
    assert len(found.expected.errors) == 75 and found.policy.returns[6] == 0
    alone = fit_learned(make_samples(replace(dev, words=words).part(seen), DEFAULT_FEATURES), DEFAULT_FEATURES)
    assert found.policy.weights == alone.weights
    assert found.reached and found.expected.depth == LAYERS[-1] and found.policy.threshold == -1
    few = dev.part(np.arange(120) < 7)
    [found] = calibrate_policies(few, ["learned"], [parse_target("wer_loss=1@90")], DEFAULT_FEATURES)
    assert found.reached and found.expected.depth == LAYERS[-1]


def test_returns_are_slopes_of_what_mixing_exits_can_reach() -> None:
    layers = np.array([2, 4, 6, 12])
    assert returns(layers, np.array([40, 20, 10, 4])) == pytest.approx([20 / 2 / 40, 10 / 2 / 20, 6 / 6 / 10])
    # The second exit is above the line from the first to the third, the last is no better than the third.
    assert returns(layers, np.array([40, 38, 4, 5])) == pytest.approx([18 / 2 / 40, 18 / 2 / 22, 0])
    assert returns(layers, np.zeros(4)).tolist() == [0, 0, 0]


def test_returns_that_chance_may_have_made_are_drawn_to_their_mean() -> None:
    random, layers = np.random.default_rng(0), np.array([2, 4, 6, 8])
    few = random.poisson((0.6, 0.3, 0.2, 0.2), (100, 4))
    few[:, 3] = random.permutation(few[:, 2])
    few[0, 3] += 1  # by one error the last exit is the worse one
    seen, likely = returns(layers, few.sum(axis=0)), likely_returns(layers, few)
    assert seen[2] == 0 < likely[2] < likely[1] < likely[0]
    assert likely[0] / likely[1] < seen[0] / seen[1]
    # What every resample says stays: nobody saves anything after the second exit.
    same = np.tile([4, 2, 2, 3], (100, 1))
    assert likely_returns(layers, same) == pytest.approx([np.sqrt(0.25 * 0.25 / 3), 0, 0])
    assert likely_returns(layers, few).tolist() == likely.tolist()


def test_few_errors_leave_the_say_to_the_first_feature_alone() -> None:
    """Two features that tell the same: with many errors they share the slope, with few the first takes more of it."""
    random = np.random.default_rng(0)
    features = np.repeat(random.normal(size=(3000, 1, 1)), 2, axis=2) + random.normal(size=(3000, 1, 2)) / 2

    def first(utterances: int) -> float:
        errors = random.poisson(100 * np.exp(-5 + features[:utterances].sum(axis=2) / 2))
        one = Samples(np.array([2, 4]), features[:utterances], np.tile(errors, 2), np.full(utterances, 100))
        weights = list(fit_learned(one, ("log_entropy", "agreeing_exits")).weights.values())
        return weights[0] / sum(weights)

    assert first(3000) == pytest.approx(0.5, abs=0.05)
    assert first(15) > 0.7


def test_the_fewer_errors_the_nearer_to_one_rule_for_all_exits(dev: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = make_samples(dev, DEFAULT_FEATURES)
    total = samples.errors[:, :-1].sum()

    def fitted(prior: float) -> tuple[np.ndarray, np.ndarray]:
        monkeypatch.setattr("espnet_ee.score.fit._PRIOR", prior)
        policy = fit_learned(samples, DEFAULT_FEATURES)
        return np.array(list(policy.weights.values())), np.array(list(policy.intercepts.values()))

    (own_weights, own), (one_weights, one), (weights, intercepts) = (fitted(prior) for prior in (0.0, 1e15, total / 3))
    # Alone, each exit's intercept makes the errors expected there those that were seen; one for all makes their sum so.
    rates = samples.features @ own_weights + own, samples.features @ one_weights + one
    expected, of_one_rule = ((samples.frames[:, None] * np.exp(rate)).sum(axis=0) for rate in rates)
    assert expected == pytest.approx(samples.errors[:, :-1].sum(axis=0), abs=0.05)
    assert of_one_rule.sum() == pytest.approx(total, abs=0.05)
    assert one == pytest.approx([one[0]] * 3) and one_weights[1:] == pytest.approx([0] * 3, abs=1e-9)
    # A third of the errors' worth has a quarter of the say.
    assert weights == pytest.approx(0.75 * own_weights + 0.25 * one_weights)
    assert intercepts == pytest.approx(0.75 * own + 0.25 * one)


def test_the_fit_finds_the_rates_that_made_the_errors() -> None:
    """Counts drawn from known slopes and intercepts, also at an exit without an error and with a row that is not known."""
    random = np.random.default_rng(0)
    utterances, slopes, intercepts = 4000, np.array([1.0, -0.5]), np.array([-3.0, -4.0, -60.0])
    features, frames = random.normal(size=(utterances, 3, 2)), random.integers(50, 150, utterances)
    rates = np.exp(features @ slopes + intercepts)
    errors = np.concatenate([random.poisson(frames[:, None] * rates), np.zeros((utterances, 1), int)], axis=1)
    features[0, 0, 0] = np.nan
    fitted = fit_learned(Samples(np.array([2, 4, 6, 8]), features, errors, frames), ("log_entropy", "agreeing_exits"))
    assert list(fitted.weights.values()) == pytest.approx(slopes, abs=0.03)
    assert [fitted.intercepts[2], fitted.intercepts[4]] == pytest.approx([-3.0, -4.0], abs=0.05)
    assert -30 < fitted.intercepts[6] < -6


def test_cross_fitting_never_judges_by_a_model_that_saw_the_utterance(dev: Grid) -> None:
    """Changing the errors of one fold changes the levels of the other folds only."""
    samples = make_samples(dev, DEFAULT_FEATURES)
    changed = samples.errors.copy()
    changed[:15] = changed[:15, ::-1] + 3  # the first of eight folds
    other = type(samples)(samples.layers, samples.features, changed, samples.frames)
    same = cross_fitted_levels(samples) == cross_fitted_levels(other)
    assert same[:15].all()
    assert not same[15:].any()


def test_cross_fitted_levels_are_those_of_the_policy_fitted_without_the_fold(dev: Grid) -> None:
    samples = make_samples(dev, DEFAULT_FEATURES)
    first = folds(len(dev.utterances)) == 0
    policy = fit_learned(samples.rows(~first), DEFAULT_FEATURES)
    np.testing.assert_allclose(cross_fitted_levels(samples)[first], levels(dev, policy)[first, :-1])


def test_the_fitted_policy_survives_its_yaml(dev: Grid, tmp_path: Path) -> None:
    policy = fit_learned(make_samples(dev, DEFAULT_FEATURES), DEFAULT_FEATURES)
    [calibrated] = calibrate_policies(dev, ["learned"], [parse_target("mean_layer=4")], DEFAULT_FEATURES)
    [path] = write_calibrated(tmp_path, [calibrated], "dev")
    assert path.name == f"decode_{calibrated.name}.yaml" == "decode_learned_mean_layer4.yaml"
    config = DecodingConfig.read(path)
    assert config == calibrated.config_in(DecodingConfig())
    assert replace(config.policy_for(LAYERS), threshold=0.0) == policy


def test_mixtures_lie_on_the_line_between(dev: Grid) -> None:
    one, two = fixed_outcomes(dev)[:2]
    half = at_cost([one, two], (one.macs_per_second + two.macs_per_second) / 2)
    assert half.wer == pytest.approx((one.wer + two.wer) / 2)
    assert half.depth == pytest.approx(3.0)
    assert at_cost([one, two], 0.0).wer == one.wer


def test_intervals_hold_the_value_and_pairs_are_tighter(dev: Grid) -> None:
    drawn = draws(len(dev.utterances))
    early, late = fixed_outcomes(dev)[2:]
    interval = wer_interval(drawn, late)
    assert interval[0] < late.wer < interval[1]
    paired = difference(drawn, early, late)
    assert paired.low < paired.points == early.wer - late.wer < paired.high
    assert paired.high - paired.low < interval[1] - interval[0]
    assert difference(drawn, late, late).high == 0


def test_hurt_utterances_lose_words(test_set: Grid) -> None:
    hurt = hurt_most(test_set, exits_of(test_set, FixedExitPolicy(LAYERS[0])))
    lost = [one.errors - one.errors_at_last for one in hurt]
    assert min(lost) > 0 and lost == sorted(lost, reverse=True)
    assert lost[0] == (test_set.errors[:, 0] - test_set.errors[:, -1]).max()
    first = test_set.table.utterances[hurt[0].utterance].rows
    assert (hurt[0].exit_layer, hurt[0].text, hurt[0].text_of_last) == (LAYERS[0], first[0].hypothesis, first[-1].hypothesis)


def as_import(path: Path, columns: tuple[str, ...]) -> Path:
    """Writes the made set as somebody else's table."""
    table, references = make_set(30, 3)
    lines = []
    for utt, utterance in table.utterances.items():
        for row in utterance.rows:
            posterior = 1 / (1 + np.exp(row.evidence.nbest_scores[1] - row.evidence.nbest_scores[0]))
            cell = {
                "utt_id": utt, "exit_layer": row.evidence.layer, "reference": references[utt], "hypothesis": row.hypothesis,
                "entropy": row.evidence.entropy, "posterior": posterior, "token_confidence": row.evidence.token_confidence,
            }  # fmt: skip
            lines.append("\t".join(str(cell[column]) for column in columns))
    path.write_text("\n".join(["\t".join(columns), *lines]) + "\n", encoding="utf-8")
    return path


def rows_of(table: str) -> list[dict[str, str]]:
    return list(csv.DictReader(table.splitlines(), delimiter="\t"))


def test_an_imported_table_is_replayed(tmp_path: Path) -> None:
    path = as_import(tmp_path / "theirs.tsv", (*NEEDED, "posterior", "token_confidence"))
    read, references = read_imported(path)
    table, expected = make_set(30, 3)
    assert references == expected
    assert [u.rows[0].evidence.entropy for u in read.utterances.values()] == [
        u.rows[0].evidence.entropy for u in table.utterances.values()
    ]
    rows = rows_of(replay_table(read_grid(path, None), ["fixed", "entropy=0.02,0.03", "posterior"], [], 20))
    fixed = [row for row in rows if row["policy"] == "fixed"]
    assert [float(row["depth"]) for row in fixed] == list(LAYERS)
    ours = fixed_outcomes(make_grid("ours", table, expected))
    assert [float(row["wer"]) for row in fixed] == pytest.approx([point.wer for point in ours], abs=1e-3)
    assert [row["threshold"] for row in rows if row["policy"] == "entropy"] == ["0.02", "0.03"]
    # Sure or not, the policy sees the posterior itself.
    grid = make_grid("theirs", read, references)
    plain = make_grid("ours", table, expected)
    policy = build_policy("posterior", {"threshold": 0.9, "nbest": 2})
    assert exits_of(grid, policy).tolist() == exits_of(plain, policy).tolist()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (tuple(name for name in NEEDED if name != "entropy"), "the column 'entropy' is missing"),
        ((*NEEDED, "posterior", "posterior"), "the column 'posterior' is unknown or there twice"),
        ((*NEEDED, "posterior"), None),
    ],
)
def test_a_broken_import_is_named(tmp_path: Path, columns: tuple[str, ...], message: str | None) -> None:
    path = as_import(tmp_path / "theirs.tsv", columns)
    if message:
        with pytest.raises(UserError, match=message):
            read_imported(path)
        return
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")
    path.write_text("\n".join([lines[0], *lines[2:]]), encoding="utf-8")
    with pytest.raises(UserError, match="has rows of exits"):
        read_imported(path)
    path.write_text(text.replace("entropy", "luck"), encoding="utf-8")
    with pytest.raises(UserError, match="the column 'entropy' is missing"):
        read_imported(path)
    cells = lines[1].split("\t")
    cells[1] = "two"
    path.write_text("\n".join([lines[0], "\t".join(cells), *lines[2:]]), encoding="utf-8")
    with pytest.raises(UserError, match=r"theirs.tsv:2: .*two"):
        read_imported(path)


def test_replay_says_what_is_missing(dev: Grid, tmp_path: Path) -> None:
    table, _ = write(tmp_path / "dev", 5, 1)
    with pytest.raises(UserError, match="evidence.tsv: .*text"):
        read_grid(table, None)
    for names, count, said in (
        ([], 20, "at least one"),
        (["entropy"], 0, "--thresholds is 0"),
        (["entropy=much"], 20, "'entropy=much'"),
        (["fixed=nan"], 20, "'fixed=nan'"),
        (["learned"], 20, "'learned'"),
        (["entropy=0.1,-1"], 20, "entropy: threshold -1: give a number from 0 on"),
        (["patience=2.5"], 20, "a whole number from 1 on"),
    ):
        with pytest.raises(UsageError, match=said):
            replay_table(dev, names, [], count)
    for name in ("fixed=4.7", "fixed=inf"):
        with pytest.raises(UserError, match="exit_layer"):
            replay_table(dev, [name], [], 20)


def test_a_model_with_one_exit_has_nothing_to_calibrate() -> None:
    """The recipes' baselines pass through the same stages."""
    table, references = make_set(30, 1)
    last = {name: Utterance(one.audio_seconds, one.rows[-1:]) for name, one in table.utterances.items()}
    grid = make_grid("dev", EvidenceTable(LAYERS[-1:], last), references)
    assert calibrate_policies(grid, NAMES, [parse_target("wer_loss=1")], DEFAULT_FEATURES) == []


@pytest.fixture
def bench_policy() -> ModuleType:
    """The tool as a module."""
    spec = importlib.util.spec_from_file_location("bench_policy", Path(__file__).parents[2] / "tools" / "bench_policy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_of_policies_says_what_was_gained(
    bench_policy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, text = write(tmp_path / "dev", 200, 1)
    arguments = ["--evidence", str(table), "--text", str(text), "--repeats", "3"]
    bench_policy.main([*arguments, "--fit", "60", "100"])
    said = capsys.readouterr().out
    assert "200 utterances of 200 speakers, 3 repeats" in said
    assert [line.split(",")[0] for line in said.splitlines() if line.startswith("fitted")] == ["fitted on 60", "fitted on 100"]
    gained = [line.split() for line in said.splitlines() if line.startswith("learned - entropy")]
    assert all(float(line[-3]) < 0 for line in gained), said
    bench_policy.main([*arguments, "--repeats", "1"])
    said = capsys.readouterr().out
    assert [line.split(",")[0] for line in said.splitlines() if line.startswith("fitted")] == ["fitted on 50", "fitted on 100"]
    bench_policy.main(["--generated", "120", "--fit", "60", "--repeats", "1"])
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "generated: 120 utterances of 120 speakers, 1 repeats"
    [asked, sure] = [
        next(line.split() for line in said if line.startswith(start)) for start in ("loss asked", "depth of learned")
    ]
    assert asked[-4:] == ["1", "1@90", "5", "10"] and sure[-3] == "12.0"  # so few can promise the last exit alone
    with pytest.raises(UsageError, match="leaves no speaker"):
        bench_policy.main([*arguments, "--fit", "200"])


def test_speakers_are_drawn_whole(bench_policy) -> None:
    speakers = np.repeat(["a", "b", "c", "d"], [3, 5, 2, 4])
    for seed in range(10):
        mask = bench_policy.draw(speakers, 4, np.random.default_rng(seed))
        assert mask.sum() >= 4 and set(speakers[mask]).isdisjoint(speakers[~mask])


def test_a_part_of_a_set_is_that_part_of_everything(dev: Grid) -> None:
    part = dev.part(np.arange(120) % 3 == 1)
    assert part.utterances == dev.utterances[1::3]
    policy = EntropyPolicy(0.03)
    whole = outcome(dev, exits_of(dev, policy), True)
    assert outcome(part, exits_of(part, policy), True).errors.tolist() == whole.errors[1::3].tolist()
    assert outcome(part, exits_of(part, policy), True).macs.tolist() == whole.macs[1::3].tolist()


def without(grid: Grid, **evidence: object) -> Grid:
    """The set with other evidence at every exit."""
    utterances = {
        utt: replace(one, rows=tuple(replace(row, evidence=replace(row.evidence, **evidence)) for row in one.rows))
        for utt, one in grid.table.utterances.items()
    }
    return replace(grid, table=EvidenceTable(grid.table.exit_layers, utterances))


@pytest.mark.parametrize("name", ["entropy", "confidence", "posterior"])
def test_evidence_that_a_table_lacks_is_no_threshold(dev: Grid, name: str) -> None:
    lacking = without(dev, entropy=float("nan"), spoken_confidence=float("nan"), nbest_scores=())
    with pytest.raises(UserError, match=f"policy {name}: the evidence table of set dev lacks what it reads"):
        make_families(lacking, [name], DEFAULT_FEATURES)
    # Where every exit is silent there is rightly no confidence in what it spoke: then nobody stops early.
    [family] = make_families(without(lacking, tokens=()), [name], DEFAULT_FEATURES)
    assert [found.depth for found in family.outcomes] == [LAYERS[-1]]


def test_the_size_of_the_nbest_does_not_hang_on_the_first_utterance(dev: Grid) -> None:
    first, *others = dev.table.utterances
    short = {first: without(dev, nbest_scores=(-1.0,)).table.utterances[first]}
    table = EvidenceTable(LAYERS, {**without(dev, nbest_scores=(-1.0, -2.0, -3.0)).table.utterances, **short})
    assert next(iter(table.utterances)) == first and others
    [family] = make_families(replace(dev, table=table), ["posterior"], DEFAULT_FEATURES)
    assert {policy.nbest for policy in family.policies} == {3}


def test_without_an_error_nothing_is_learned_from_the_features() -> None:
    features = np.random.default_rng(0).normal(size=(30, 3, 2))
    samples = Samples(np.array([2, 4, 6, 8]), features, np.zeros((30, 4)), np.full(30, 50))
    weights = fit_learned(samples, ("log_entropy", "agreeing_exits")).weights
    assert np.abs(list(weights.values())).max() < 0.1


@pytest.mark.parametrize(("posterior", "scores"), [("1", (0.0, -1e9)), ("0.5", (math.log(0.5), math.log(0.5))), ("", ())])
def test_a_posterior_is_what_two_hypotheses_of_it_say(tmp_path: Path, posterior: str, scores: tuple[float, ...]) -> None:
    path = tmp_path / "theirs.tsv"
    path.write_text(f"utt_id\texit_layer\treference\thypothesis\tentropy\tposterior\nu\t2\ta b\ta c a\t0.1\t{posterior}\n")
    [row] = read_imported(path)[0].utterances["u"].rows
    assert row.evidence.nbest_scores == scores
    assert (row.evidence.tokens, row.evidence.frames, row.encoder_macs, row.head_macs) == ((1, 2, 1), 3, 2, 0)
    for wrong in ("0", "-0.1", "1.1", "nan", "sure"):
        path.write_text(path.read_text().replace("\t0.1\t" + posterior, "\t0.1\t" + wrong))
        with pytest.raises(UserError, match=rf":2: .*{wrong}"):
            read_imported(path)
        path.write_text(path.read_text().replace("\t0.1\t" + wrong, "\t0.1\t" + posterior))


def test_features_are_named_once(dev: Grid) -> None:
    for names in (["log_entropy", "log_entropy"], [], ["luck"]):
        with pytest.raises(UsageError, match="each once|unknown"):
            make_samples(dev, names)


def test_too_little_evidence_to_fit_on_is_said(dev: Grid) -> None:
    utterances = without(dev, entropy=float("nan")).table.utterances
    first = dev.utterances[0]
    scarce = replace(dev, table=EvidenceTable(LAYERS, {**utterances, first: dev.table.utterances[first]}))
    with pytest.raises(UserError, match="too few utterances have all of the features"):
        make_families(scarce, ["learned"], DEFAULT_FEATURES)


def test_references_without_a_word_have_no_error_rate() -> None:
    table, references = make_set(5, 1)
    with pytest.raises(UserError, match="no reference has a word"):
        make_grid("empty", table, dict.fromkeys(references, ""))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\thyp\t", "\thyp\ttab\t", ":2: 7 fields, expected 6"),
        ("\t2.5\n", "\t0\n", ":2: an utterance of 0 seconds"),
        ("\t2.5\n", "\tnan\n", ":2: an utterance of nan seconds"),
        ("u 4", "u\t4", "fields"),
        ("\t0.1\t", "\t-0.1\t", ":2: entropy is -0.1"),
        ("\t0.1\t", "\tinf\t", ":2: entropy is inf"),
        ("u\t2", "u\t-2", ":2: an exit layer below 1"),
        ("u\t2", "\t2", ":2: no utt_id"),
    ],
)
def test_a_wrong_row_of_an_import_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = "utt_id\texit_layer\treference\thypothesis\tentropy\taudio_seconds\n"
    text += "u\t2\tref\thyp\t0.1\t2.5\nu\t4\tref u 4\thyp\t0.1\t\n".replace("ref u 4", "ref")
    path = tmp_path / "theirs.tsv"
    path.write_text(text)
    table, _ = read_imported(path)
    assert table.utterances["u"].audio_seconds == 2.5  # an empty cell says nothing
    lines = text.splitlines(keepends=True)
    path.write_text(lines[0] + lines[2] + lines[1])
    assert repr(read_imported(path)[0]) == repr(table)  # NaN is equal to nothing
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n")  # as a spreadsheet may
    assert is_imported(path) and repr(read_imported(path)[0]) == repr(table)
    path.write_text(text.replace("\t\n", "\t3\n"))
    with pytest.raises(UserError, match=":3: other audio_seconds of u"):
        read_imported(path)
    path.write_text(text.replace(old, new, 1) if old in text else text.replace("u\t4", "u\t4\t"))
    with pytest.raises(UserError, match=message):
        read_imported(path)
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(UserError):
        read_imported(path)


def test_configurations_are_replayed(dev: Grid, tmp_path: Path) -> None:
    config = tmp_path / "lr=0.1" / "decode.yaml"
    config.parent.mkdir()
    config.write_text("policy: fixed\n")
    rows = rows_of(replay_table(dev, [], [str(config), f"{config}=2,6"], 20))
    assert [float(row["depth"]) for row in rows] == [8, 2, 6]
    config.write_text("policy: entropy\npolicy_conf: {threshold: 0.02}\n")
    [row] = rows_of(replay_table(dev, [], [str(config)], 20))
    reached = outcome(dev, exits_of(dev, EntropyPolicy(0.02)), True)
    assert (row["threshold"], float(row["errors"]), float(row["words"])) == ("0.02", reached.errors.sum(), 1200)
    assert float(row["macs_per_second"]) == pytest.approx(reached.macs_per_second, rel=1e-5)


def test_targets_that_are_near_have_files_of_their_own() -> None:
    near = [parse_target(f"macs_per_second={value}") for value in ("1234561", "1234564")]
    assert len({target.tag for target in near}) == 2
    assert parse_target("wer_loss=1") == parse_target("wer_loss=1.0")


def test_policies_of_an_earlier_calibration_do_not_stay(dev: Grid, tmp_path: Path) -> None:
    for targets in ("wer_loss=1 mean_layer=5", "mean_layer=5"):
        calibrated = calibrate_policies(dev, ["entropy"], [parse_target(word) for word in targets.split()], [])
        write_calibrated(tmp_path, calibrated, "dev")
        (tmp_path / "decode_mine.yaml").write_text("policy: fixed\n")
    assert sorted(path.name for path in tmp_path.glob("*.yaml")) == ["decode_entropy_mean_layer5.yaml", "decode_mine.yaml"]


def test_a_new_policy_with_a_threshold_is_known_by_its_name(dev: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Own(EntropyPolicy):
        name: ClassVar[str] = "own"

    monkeypatch.setitem(POLICIES, "own", Own)
    own, entropy = make_families(dev, ["own", "entropy"], DEFAULT_FEATURES)
    assert [found.wer for found in own.outcomes] == [found.wer for found in entropy.outcomes]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "learned"])
def test_where_there_is_nothing_to_go_by_nobody_stops_elsewhere_either(dev: Grid, name: str) -> None:
    policy = build_policy(name, {"threshold": 0.0})
    [threshold] = candidate_thresholds(policy, np.full(dev.errors.shape, np.nan))
    level = np.tile([0.0, 0.5, 1.0, np.nan], (len(dev.utterances), 1))
    assert set(exits_at(policy, level, threshold)) == {len(LAYERS) - 1}
