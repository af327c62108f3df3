"""Promises of an error rate over new utterances: the bound, the order of the tests, and how often a promise is broken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.score.calibrate import Family, calibrate, calibrate_policies, parse_target, write_calibrated
from espnet_ee.score.grid import make_grid
from espnet_ee.score.outcome import Outcome
from espnet_ee.score.promise import largest_loss, last_kept, loss_bounds
from tests.score.conftest import make_references, make_table, make_timing
from tests.score.test_experiment import quick_picture, score  # noqa: F401

LAYERS = np.array([2, 4, 6, 8, 10, 12])


@pytest.mark.parametrize(("utterances", "losses"), [(100, 0), (100, 3), (30, 7)])
def test_of_losses_of_a_word_the_bound_is_cloppers_and_pearsons(utterances: int, losses: int) -> None:
    final, more = np.full(utterances, 4), np.arange(utterances) < losses
    [bound] = loss_bounds((final + more)[None], final, 1.0, 90)
    exact = 100 * stats.beta.ppf(0.9, losses + 1, utterances - losses) / 4
    assert 0.97 * exact < bound < 1.1 * exact  # a little above: the utterance more has no errors of the final exit


def test_more_confidence_a_larger_loss_and_fewer_utterances_make_a_larger_bound() -> None:
    random = np.random.default_rng(0)
    final, lost = (np.tile(values, 8) for values in (random.poisson(2, 50), random.choice([-1, 0, 0, 0, 1], 50)))

    def bound(confidence: float = 90, largest: float = 1.0, utterances: int = 400) -> float:
        return float(loss_bounds((final + lost)[None, :utterances], final[:utterances], largest, confidence)[0])

    assert bound() < bound(confidence=95) < bound(confidence=99)
    assert bound() < bound(largest=5.0) and bound() < bound(utterances=50)
    assert bound() > 100 * lost.sum() / final.sum()
    assert loss_bounds(np.zeros((2, 5)), np.zeros(5), 1.0, 90).tolist() == [np.inf, np.inf]  # no error: nothing may be lost


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_loss_that_is_the_same_share_of_every_utterance_is_its_own_bound(share: float) -> None:
    final = np.arange(1, 30)
    assert loss_bounds((1 + share) * final[None], final, 0.0, 90) == pytest.approx([100 * share])


def test_the_first_threshold_that_fails_ends_the_search() -> None:
    assert [last_kept(np.array(bounds), 1.0) for bounds in ([2, 0], [0, 1.0], [0, 0.5, 1.1, 0.2], [np.nan, 0])] == [0, 2, 2, 0]


def family(errors: np.ndarray, level: np.ndarray, thresholds: np.ndarray) -> tuple[Family, np.ndarray]:
    """Entropy at the thresholds, the shallowest first, and the exits (J, N) where utterances stop."""
    stops = np.concatenate([level < thresholds[:, None, None], np.ones((len(thresholds), len(level), 1), dtype=bool)], axis=2)
    exits = stops.argmax(axis=2)
    made = [made_outcome(errors, row) for row in exits]
    last = made_outcome(errors, np.full(len(errors), errors.shape[1] - 1))
    return Family([EntropyPolicy(float(value)) for value in thresholds], made, last, largest_loss(errors)), exits


def made_outcome(errors: np.ndarray, exits: np.ndarray) -> Outcome:
    wrong = errors[np.arange(len(exits)), exits]
    edits = np.stack([np.full(len(exits), 20) - wrong, wrong, 0 * wrong, 0 * wrong], axis=1)
    return Outcome(edits, edits, LAYERS[exits] * 1.0, LAYERS[exits], np.ones(len(exits)))


def made_set(utterances: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Errors of every exit (N, 6), of which a deeper one makes fewer, though not for every utterance, and their levels (N, 5)."""
    random = np.random.default_rng(seed)
    difficulty = random.beta(1.2, 5, utterances)[:, None] * [1.0, 0.62, 0.45, 0.38, 0.34, 0.32]
    errors = random.binomial(3, difficulty) + 2 * random.binomial(8, random.beta(1.2, 5, utterances)[:, None] / 3)
    return errors, np.log(difficulty[:, :-1] + 0.02) + random.normal(0, 0.4, (utterances, 5))


def chosen(utterances: np.ndarray, errors: np.ndarray, level: np.ndarray, target: str) -> float:
    values = np.unique(level[utterances])
    middle = np.quantile((values[1:] + values[:-1]) / 2, np.linspace(0, 1, 30))[::-1]
    thresholds = np.concatenate([[values[-1] + 1], middle, [values[0] - 1]])
    found = calibrate(family(errors[utterances], level[utterances], thresholds)[0], parse_target(target))
    assert found.reached
    return found.policy.threshold


def loss(threshold: float, errors: np.ndarray, level: np.ndarray) -> float:
    exits = family(errors, level, np.array([threshold]))[1][0]
    return 100 * (errors[np.arange(len(exits)), exits].sum() / errors[:, -1].sum() - 1)


@pytest.mark.parametrize("utterances", [100, 300, 1000])
def test_a_promise_with_90_per_cent_confidence_is_rarely_broken(utterances: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 splits into a development set and the rest. The plain target, met on the set itself, is broken more often than that."""
    monkeypatch.setattr("espnet_ee.score.promise.DRAWS", 400)
    errors, level = made_set(12000, 0)
    random = np.random.default_rng(utterances)
    broken, plain, stopped = 0, 0, 0
    for split in range(200):
        mask = np.zeros(len(errors), dtype=bool)
        mask[random.choice(len(errors), utterances, replace=False)] = True
        threshold = chosen(np.flatnonzero(mask), errors, level, "wer_loss=1@90")
        broken += loss(threshold, errors[~mask], level[~mask]) > 1
        stopped += bool((level[~mask] < threshold).any())
        if split < 20:
            plain += loss(chosen(np.flatnonzero(mask), errors, level, "wer_loss=1"), errors[~mask], level[~mask]) > 1
    assert broken <= 24  # 12 %
    assert plain > 0.12 * 20
    assert utterances < 1000 or stopped == 200  # enough of them let somebody stop early


def test_few_utterances_can_promise_the_last_exit_alone() -> None:
    errors, level = made_set(20, 1)
    found = calibrate(family(errors, level, np.array([9.0, -3.5, -99.0]))[0], parse_target("wer_loss=1@90"))
    assert found.policy.threshold == -99.0 and found.reached and (found.loss, found.bound) == (0.0, 0.0)
    assert "nobody stops early, for too few utterances" in str(found)
    assert found.name == "entropy_wer_loss1at90"


def test_a_policy_whose_deepest_point_loses_words_says_that_it_cannot_promise() -> None:
    errors, _ = made_set(300, 1)
    made = made_outcome(errors, np.zeros(300, dtype=int))
    last = made_outcome(errors, np.full(300, 5))
    found = calibrate(Family([FixedExitPolicy(2)], [made], last, largest_loss(errors)), parse_target("wer_loss=1@90"))
    assert not found.reached and found.bound > found.loss > 1 and "NOT REACHED" in str(found)


def test_the_page_says_how_a_promise_is_meant_and_what_it_costs(experiment: Path) -> None:
    dev = make_grid("dev", make_table(), make_references(), make_timing())
    targets = [parse_target(word) for word in ("wer_loss=0", "wer_loss=0@90")]
    write_calibrated(experiment / "policies", calibrate_policies(dev, ["entropy"], targets, []), "dev")
    page = score(experiment)
    # Threshold -1: nobody stops; 3 errors in 14 words of dev and in 10 of test.
    said = "at most 0 % relative WER above the final exit, with 90 % confidence"
    [row] = [line for line in page.splitlines() if line.startswith("|entropy_wer_loss0at90|at most")]
    assert f"|{said}|21.43 [" in row and "|6.00|+0.0 <= +0.0|30.00 [" in row
    assert "(6 here), the deeper a policy has to stay" in page
    [plain] = [line for line in page.splitlines() if line.startswith("|entropy_wer_loss0|at most")]
    assert "|3.67|+0.0|" in plain
    text = (experiment / "policies/decode_entropy_wer_loss0at90.yaml").read_text()
    assert text.startswith(
        f"# Calibrated on dev for: {said}. Expected there: 21.43 % WER, mean exit layer 6.00; nobody stops early"
    )
