"""Policies against hand-made evidence, and their monotonicity for any evidence."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ee.errors import UserError
from espnet_ee.policy.base import choose_exit
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.evidence import ExitEvidence
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.policy.registry import POLICIES, build_policy

EXIT_LAYERS = (2, 4, 6, 8, 10, 12)


def evidence_of(entropies: Sequence[float]) -> tuple[ExitEvidence, ...]:
    return tuple(
        ExitEvidence(layer, (1, 2), entropy, 0.9, 0.5, -1.0, 10) for layer, entropy in zip(EXIT_LAYERS, entropies, strict=False)
    )


def mean_depth(threshold: float, utterances: Sequence[Sequence[float]]) -> float:
    policy = EntropyPolicy(threshold)
    return sum(EXIT_LAYERS[choose_exit(policy, evidence_of(entropies))] for entropies in utterances) / len(utterances)


def test_entropy_stops_at_the_first_exit_below_the_threshold() -> None:
    evidence = evidence_of([0.5, 0.3, 0.2, 0.25, 0.1, 0.05])
    assert choose_exit(EntropyPolicy(0.3), evidence) == 2  # strictly below: 0.3 does not stop
    assert choose_exit(EntropyPolicy(0.31), evidence) == 1
    assert choose_exit(EntropyPolicy(0.15), evidence) == 4
    assert choose_exit(EntropyPolicy(0.01), evidence) == 5  # nobody is sure: the last exit


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("threshold", [0.3, math.inf])
def test_evidence_that_is_no_number_goes_on(bad: float, threshold: float) -> None:
    assert choose_exit(EntropyPolicy(threshold), evidence_of([bad, bad, 0.2, 0.1])) == 2
    assert choose_exit(EntropyPolicy(threshold), evidence_of([bad] * 4)) == 3


numbers = st.floats(min_value=0.0) | st.just(math.nan)
entropies = st.lists(numbers, min_size=6, max_size=6)
finite = st.lists(st.floats(min_value=0.0, allow_infinity=False), min_size=6, max_size=6)


@settings(deadline=None)
@given(st.lists(entropies, min_size=1, max_size=8), st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_a_higher_threshold_never_goes_deeper(utterances: list[list[float]], one: float, other: float) -> None:
    assert mean_depth(min(one, other), utterances) >= mean_depth(max(one, other), utterances)


@settings(deadline=None)
@given(st.lists(finite, min_size=1, max_size=8))
def test_extreme_thresholds_give_the_last_and_the_first_exit(utterances: list[list[float]]) -> None:
    assert mean_depth(-math.inf, utterances) == mean_depth(0.0, utterances) == 12
    assert mean_depth(math.inf, utterances) == 2


@settings(deadline=None)
@given(finite, st.floats(allow_nan=False))
def test_the_choice_never_depends_on_later_exits(values: list[float], threshold: float) -> None:
    chosen = choose_exit(EntropyPolicy(threshold), evidence_of(values))
    assert choose_exit(EntropyPolicy(threshold), evidence_of(values[: chosen + 1])) == chosen


@pytest.mark.parametrize("layer", EXIT_LAYERS)
def test_fixed_stops_at_its_layer(layer: int) -> None:
    policy = FixedExitPolicy(layer)
    policy.check(EXIT_LAYERS)
    assert EXIT_LAYERS[choose_exit(policy, evidence_of([math.nan] * 6))] == layer
    assert not policy.needs_every_exit and not policy.reads


def test_fixed_refuses_a_layer_without_exit() -> None:
    with pytest.raises(UserError, match="no exit after layer 5; choose exit_layer among 2 4 6"):
        FixedExitPolicy(5).check(EXIT_LAYERS)


def test_no_evidence_is_a_bug() -> None:
    with pytest.raises(ValueError, match="at least one exit"):
        choose_exit(FixedExitPolicy(2), ())


def test_registry_names_are_the_classes_names() -> None:
    for name, policy_class in POLICIES.items():
        assert policy_class.name == name
        assert dataclasses.is_dataclass(policy_class) and policy_class.__dataclass_params__.frozen


def test_build_policy_takes_numbers_as_yaml_and_command_lines_give_them() -> None:
    assert build_policy("entropy", {"threshold": 1}) == EntropyPolicy(1.0)
    assert build_policy("entropy", {"threshold": "1e-3"}) == EntropyPolicy(0.001)
    assert build_policy("fixed", {"exit_layer": "4"}) == FixedExitPolicy(4)


@pytest.mark.parametrize(
    ("name", "conf", "message"),
    [
        ("entrpy", {}, "unknown; choose one of: cluster_entropy, confidence, decoder, decoder_posterior, entropy, fixed"),
        ("entropy", {"treshold": 1}, "unknown key 'treshold'; allowed keys of policy_conf: threshold"),
        ("entropy", {}, "the key 'threshold' is missing"),
        ("entropy", {"threshold": "much"}, "threshold must be of type float, not 'much'"),
        ("entropy", {"threshold": None}, "must be of type float"),
        ("entropy", {"threshold": True}, "must be of type float"),
        ("entropy", {"threshold": "nan"}, "not a number"),
        ("fixed", {"exit_layer": 4.5}, "must be of type int, not 4.5"),
        ("fixed", {"exit_layer": True}, "must be of type int"),
    ],
)
def test_build_policy_says_what_is_wrong(name: str, conf: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_policy(name, conf)
