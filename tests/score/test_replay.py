"""Replays of a table whose every number can be checked by head (see conftest)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from espnet_ee.errors import UserError
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.table import EvidenceTable, Utterance
from espnet_ee.score.replay import (
    choose_exits,
    entropy_sweep,
    entropy_thresholds,
    fixed_points,
    oracle_points,
    replay_policy,
    score_set,
)


def test_fixed_exits_pay_for_their_own_head_only(table: EvidenceTable, references: dict[str, str]) -> None:
    first, second, last = fixed_points(score_set("dev", table, references))
    assert [point.words.errors for point in (first, second, last)] == [3, 2, 1]
    assert [point.depth for point in (first, second, last)] == [2, 4, 6]
    assert [point.macs_per_second for point in (first, second, last)] == [3 * 210 / 4, 3 * 410 / 4, 3 * 610 / 4]
    assert last.wer == pytest.approx(100 / 7)
    assert (first.words.sentences, first.words.tokens, first.words.wrong_sentences) == (3, 7, 2)
    assert first.rtf is None


def test_the_entropy_policy_pays_for_every_head_passed(table: EvidenceTable, references: dict[str, str]) -> None:
    seconds = dict.fromkeys(references, (0.1, 0.2, 0.4))
    scored = score_set("dev", table, references, seconds)
    point = replay_policy(scored, EntropyPolicy(0.26), "sweep", "entropy")
    # a stops at 6 (third exit), b at 2 (first), c at 4 (second)
    assert choose_exits(table, EntropyPolicy(0.26)) == {"a": 2, "b": 0, "c": 1}
    assert point.words.errors == 0
    assert point.depth == 4
    assert point.macs_per_second == ((600 + 30) + (200 + 10) + (400 + 20)) / 4
    assert point.rtf == pytest.approx((0.4 + 0.1 + 0.2) / 4)
    assert point.rtf_replayed
    assert point.threshold == 0.26


def test_extreme_thresholds_are_the_first_and_the_last_exit(table: EvidenceTable, references: dict[str, str]) -> None:
    scored = score_set("dev", table, references)
    first, _, last = fixed_points(scored)
    deepest, shallowest = entropy_sweep(scored, [0.0, math.inf])
    assert (deepest.words, deepest.depth) == (last.words, last.depth)
    assert (shallowest.words, shallowest.depth) == (first.words, first.depth)
    assert shallowest.macs_per_second == first.macs_per_second
    assert deepest.macs_per_second > last.macs_per_second  # the heads below were read too


def test_oracles(table: EvidenceTable, references: dict[str, str]) -> None:
    not_worse, best = oracle_points(score_set("dev", table, references))
    # errors by exit: a 2 1 0, b 0 1 1, c 1 0 0
    assert (not_worse.words.errors, best.words.errors) == (0, 0)
    assert not_worse.depth == best.depth == (6 + 2 + 4) / 3
    assert best.macs_per_second == (610 + 210 + 410) / 4


def test_not_worse_stops_before_the_best_exit(table: EvidenceTable) -> None:
    # Against this reference exit 2 of b has as many errors as exit 6, and exit 4 fewer.
    references = {"a": "THE CAT SAT", "b": "ON THE MAT AT", "c": "HELLO"}
    worse = {"b": table.utterances["b"].rows}
    rows = (worse["b"][0], worse["b"][1], replace(worse["b"][2], hypothesis="ON THE MAT A"))
    changed = EvidenceTable(table.exit_layers, {**table.utterances, "b": Utterance(1.0, rows)})
    not_worse, best = oracle_points(score_set("dev", changed, references))
    assert (not_worse.words.errors, best.words.errors) == (1, 0)
    assert not_worse.depth < best.depth


def test_thresholds_are_quantiles_of_the_exits_that_decide(table: EvidenceTable) -> None:
    # Not the last exit's: 0.1 (b, exit 4), 0.2, 0.25, 0.3, 0.5, 0.9 remain.
    assert entropy_thresholds(table, 1) == [0.275]
    many = entropy_thresholds(table)
    assert len(many) == 15
    assert many == sorted(many)
    assert many[0] > 0.1 and many[-1] < 0.9


def test_thresholds_ignore_evidence_that_is_no_number(table: EvidenceTable) -> None:
    utterance = table.utterances["a"]
    rows = tuple(replace(row, evidence=replace(row.evidence, entropy=math.nan)) for row in utterance.rows)
    broken = EvidenceTable(table.exit_layers, {**table.utterances, "a": Utterance(2.0, rows)})
    assert all(map(math.isfinite, entropy_thresholds(broken)))
    assert entropy_thresholds(EvidenceTable(table.exit_layers, {"a": Utterance(2.0, rows)})) == []


def test_the_sweep_is_monotone_in_depth_and_compute(table: EvidenceTable, references: dict[str, str]) -> None:
    points = entropy_sweep(score_set("dev", table, references), entropy_thresholds(table))
    depths = [point.depth for point in points]
    assert depths == sorted(depths, reverse=True)
    assert len(set(depths)) > 2


def test_a_set_that_lacks_an_utterance_is_refused(table: EvidenceTable, references: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"set dev: no hypothesis for d \(1 of 4"):
        score_set("dev", table, {**references, "d": "MORE"})
    with pytest.raises(UserError, match="set dev: hypothesis for c"):
        score_set("dev", table, {"a": "X", "b": "Y"})
    with pytest.raises(UserError, match="timing of set dev: no hypothesis for b"):
        score_set("dev", table, references, {"a": (1.0, 2.0, 3.0), "c": (1.0, 2.0, 3.0)})


def test_a_policy_that_needs_an_nbest_cannot_be_replayed(table: EvidenceTable) -> None:
    @dataclass(frozen=True)
    class Hungry(EntropyPolicy):
        nbest: ClassVar[int] = 5

    with pytest.raises(UserError, match="needs N-best scores, which the evidence table lacks"):
        choose_exits(table, Hungry(0.1))
