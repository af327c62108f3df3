"""A budget that changes is kept on average, and buys fewer errors than the fixed exits of the same cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ee.compute import MacTable, Parabola
from espnet_ee.errors import UserError
from espnet_ee.policy.base import choose_exit
from espnet_ee.policy.budget import BudgetController, CurvePoint, read_curve, schedule
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.evidence import ExitEvidence
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.policy.patience import PatiencePolicy
from espnet_ee.policy.table import EvidenceRow, macs_of_stop

LAYERS = (2, 4, 6, 8)
Utterance = tuple[float, tuple[EvidenceRow, ...], np.ndarray]  # seconds, exits, errors of every exit


def corpus(count: int, seed: int) -> list[Utterance]:
    """Utterances of different difficulty: an exit that errs is unsure, give or take some noise."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        seconds, difficulty = random.uniform(1, 10), random.uniform(0, 1.2)
        errors = np.array([max(0, round(10 * (difficulty - layer / 10))) for layer in LAYERS])
        rows = tuple(
            EvidenceRow(
                ExitEvidence(layer, (1,), 0.01 + 0.1 * error + random.uniform(0, 0.05), 0.9, 0.5, -1.0, 10), "", macs, 1000
            )
            for layer, error in zip(LAYERS, errors, strict=True)
            for macs in [int(seconds * layer * 1e6)]
        )
        made.append((seconds, rows, errors))
    return made


def cost(utterances: list[Utterance], policy: EntropyPolicy | FixedExitPolicy) -> float:
    stops = [choose_exit(policy, [row.evidence for row in rows]) for _, rows, _ in utterances]
    macs = sum(macs_of_stop(u[1], i, policy.needs_every_exit) for u, i in zip(utterances, stops, strict=True))
    return macs / sum(seconds for seconds, _, _ in utterances)


@pytest.fixture(scope="module")
def curve() -> list[CurvePoint]:
    dev = corpus(300, seed=1)
    policies = [EntropyPolicy(float(value)) for value in np.geomspace(0.01, 1.2, 30)]
    return [CurvePoint(cost(dev, policy), policy) for policy in policies]


def run(controller: BudgetController, utterances: list[Utterance]) -> tuple[int, float, list[float]]:
    """Errors, MACs, and the MACs over what was allowed at the end of each utterance."""
    errors, ratios = 0, []
    for seconds, rows, wrong in utterances:
        policy = controller.next_point().policy
        index = choose_exit(policy, [row.evidence for row in rows])
        errors += int(wrong[index])
        controller.spend(seconds, macs_of_stop(rows, index, policy.needs_every_exit))
        ratios.append(controller.spent / controller.allowed)
    return errors, controller.spent, ratios


STEPS = [(0.0, 3e6), (300.0, 6e6), (700.0, 4e6), (1100.0, 5e6)]


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_a_varying_budget_is_kept_and_beats_fixed_exits_of_equal_cost(curve: list[CurvePoint], seed: int) -> None:
    test = corpus(300, seed)
    controller = BudgetController(curve, schedule(STEPS))
    errors, spent, ratios = run(controller, test)
    assert spent == pytest.approx(controller.allowed, rel=0.05)
    assert max(ratios[50:]) < 1.05  # and it is no lucky end: never far over after the first minutes
    # Fixed exits: at each time the mixture of the two exits whose mean cost is that budget.
    fixed = [cost(test, FixedExitPolicy(layer)) for layer in LAYERS]
    now, expected = 0.0, 0.0
    for seconds, _, wrong in test:
        expected += float(np.interp(schedule(STEPS)(now), fixed, wrong))
        now += seconds
    assert errors < 0.9 * expected
    # Nor does the single fixed exit that costs what was spent do as well.
    total = np.sum([wrong for _, _, wrong in test], axis=0)
    assert errors < np.interp(spent / now, fixed, total)


def test_a_wrong_calibration_is_paid_back(curve: list[CurvePoint]) -> None:
    optimistic = [CurvePoint(0.7 * point.macs_per_second, point.policy) for point in curve]
    controller = BudgetController(optimistic, schedule([(0.0, 4e6)]))
    _, spent, _ = run(controller, corpus(600, seed=5))
    assert spent == pytest.approx(controller.allowed, rel=0.05)


def test_a_callback_is_asked_for_every_utterance(curve: list[CurvePoint]) -> None:
    asked = []
    controller = BudgetController(curve, lambda now: asked.append(now) or 4e6)
    run(controller, corpus(5, seed=6))
    assert len(set(asked)) == 5


@given(st.floats(0, 5000))
@settings(deadline=None)
def test_a_schedule_holds_from_its_time_on(now: float) -> None:
    expected = [macs for time, macs in STEPS if time <= now][-1]
    assert schedule(STEPS)(now) == expected


@pytest.mark.parametrize("steps", [[], [(1.0, 1.0)], [(0.0, 1.0), (0.0, 2.0)]])
def test_a_broken_schedule_is_refused(steps: list[tuple[float, float]]) -> None:
    with pytest.raises(UserError, match="must rise from 0"):
        schedule(steps)


def test_an_empty_curve_is_refused() -> None:
    with pytest.raises(UserError, match="calibrate a policy first"):
        BudgetController([], schedule([(0.0, 1.0)]))


@pytest.mark.parametrize("wrong", [0.0, -20.0, float("nan"), float("inf")])
def test_horizons_and_budgets_are_above_zero(wrong: float) -> None:
    points = [CurvePoint(1e6, FixedExitPolicy(2))]
    with pytest.raises(UserError, match="horizon"):
        BudgetController(points, schedule([(0.0, 1e6)]), horizon=wrong)
    with pytest.raises(UserError, match="MACs per second"):
        schedule([(0.0, wrong)])


CSV = """set,kind,name,wer,depth,macs_per_second,policy
dev,fixed,exit 2,20,2,1000,
dev,fixed,exit 4,10,4,2000,
dev,fixed,exit 6,5,6,3000,
dev,promise,fast,9,3.1,1400,entropy
dev,promise,good,6,4.4,2300,entropy
dev,promise,other,6,4.4,2300,patience
dev,oracle,oracle,3,3,1500,
test,fixed,exit 2,21,2,1200,
test,fixed,exit 4,11,4,2200,
test,fixed,exit 6,6,6,3200,
test,online,fast,9,3.1,1600,entropy
"""


def test_a_scored_model_gives_the_curve(tmp_path: Path) -> None:
    path = tmp_path / "exits.csv"
    path.write_text(CSV, encoding="utf-8")
    fast, good, other = EntropyPolicy(0.2), EntropyPolicy(0.1), PatiencePolicy(2)
    configs = {"fast": DecodingConfig(fast), "good": DecodingConfig(good), "other": DecodingConfig(other)}
    points = read_curve(path, configs)
    ends = {CurvePoint(1100, FixedExitPolicy(2), "exit 2"), CurvePoint(3100, FixedExitPolicy(6), "exit 6")}
    assert set(points) == {CurvePoint(1500, fast, "fast"), CurvePoint(2300, good, "good"), *ends}
    assert BudgetController(points, schedule([(0.0, 2250.0)])).next_point().policy == good
    assert [point.policy for point in read_curve(path, {})] == [FixedExitPolicy(2), FixedExitPolicy(4), FixedExitPolicy(6)]
    # What was not scored, or has no policy, is no point; a fixed exit that costs what a policy costs adds nothing.
    assert read_curve(path, {**configs, "new": DecodingConfig(EntropyPolicy(0.3)), "exit 2": DecodingConfig()}) == points
    met = CSV.replace("1000", "1400").replace("1200", "1600").replace("3000", "2300").replace("3200", "2300")
    path.write_text(met, encoding="utf-8")
    assert {point.policy for point in read_curve(path, configs)} == {fast, good}
    for broken in ("set,kind\ndev,fixed\n", CSV.replace("2200", "much")):
        path.write_text(broken, encoding="utf-8")
        with pytest.raises(UserError, match=r"exits\.csv"):
            read_curve(path, configs)
    with pytest.raises(UserError, match=r"none\.csv"):
        read_curve(tmp_path / "none.csv", configs)


def table_of(costs: dict[int, int]) -> MacTable:
    """A model whose exits cost so much per frame, of 100 a second."""
    return MacTable(1, 1, (0,), 0, {n: (Parabola(m, m),) for n, m in costs.items()}, {n: Parabola(0, 0) for n in costs})


def test_a_table_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "exits.csv"
    path.write_text(CSV, encoding="utf-8")  # a mean of 1100, 2100, 3100 per second
    own = {2: 11, 4: 21, 6: 31}
    assert len(read_curve(path, {}, table_of(own), 100.0)) == 3
    for costs, rate, message in (
        ({2: 11, 4: 21}, None, r"of another model: its exits are \[2, 4, 6\], not \[2, 4\]"),
        ({2: 11, 4: 21, 8: 31}, 100.0, "of another model: its exits are"),
        ({2: 11, 4: 21, 6: 62}, 100.0, "of another model: exit 6 costs 0.0031 million MACs per second"),
        ({2: 5, 4: 21, 6: 31}, 100.0, "of another model: exit 2"),
    ):
        with pytest.raises(UserError, match=rf"exits\.csv: is {message}"):
            read_curve(path, {}, table_of(costs), rate)
    assert read_curve(path, {}, table_of({2: 5, 4: 21, 6: 31}))  # of stored features nobody knows the rate


def test_policies_that_were_scored_with_other_thresholds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "exits.csv"
    rows = [f"{row},{'0.2' if 'entropy' in row else ''}" for row in CSV.splitlines()[1:]]
    path.write_text("\n".join([f"{CSV.splitlines()[0]},threshold", *rows, ""]), encoding="utf-8")
    assert {point.name for point in read_curve(path, {"fast": DecodingConfig(EntropyPolicy(0.2))})} > {"fast", "exit 6"}
    with pytest.raises(UserError, match=r"exits\.csv: fast was scored with threshold 0.2, and has 0.3 now"):
        read_curve(path, {"fast": DecodingConfig(EntropyPolicy(0.3))})
