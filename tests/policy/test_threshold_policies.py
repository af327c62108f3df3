"""What holds for every policy with a threshold, whatever the evidence, and what each of them says."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ee.errors import UserError
from espnet_ee.policy.base import ThresholdPolicy, choose_exit
from espnet_ee.policy.cluster_entropy import ClusterEntropyPolicy
from espnet_ee.policy.confidence import ConfidencePolicy
from espnet_ee.policy.decoder import DecoderPolicy, DecoderPosteriorPolicy
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.evidence import ExitEvidence
from espnet_ee.policy.features import FEATURES
from espnet_ee.policy.learned import LearnedPolicy
from espnet_ee.policy.patience import PatiencePolicy
from espnet_ee.policy.posterior import PosteriorPolicy
from espnet_ee.policy.registry import POLICIES, build_policy

LAYERS = (2, 4, 6, 8)
LEARNED = LearnedPolicy(
    0.0,
    weights=dict.fromkeys(FEATURES, 0.1),
    intercepts=dict.fromkeys(LAYERS[:-1], 0.2),
    returns={2: 0.5, 4: 0.25, 6: 0.0},
)
POLICIES_WITH_A_THRESHOLD = [
    EntropyPolicy(0.0),
    ConfidencePolicy(0.0),
    PatiencePolicy(0.0),
    PosteriorPolicy(0.0, nbest=3),
    ClusterEntropyPolicy(0.0),
    DecoderPolicy(0.0),
    DecoderPosteriorPolicy(0.0),
    LEARNED,
]
BROKEN = (math.nan, math.inf, -math.inf)


def drawn(seed: int, broken: float = 0.0) -> tuple[ExitEvidence, ...]:
    """Evidence of all exits by chance, a share of its numbers broken. (One seed: drawing each number takes ten times longer.)"""
    random = Random(seed)

    def number() -> float:
        return random.choice(BROKEN) if random.random() < broken else random.choice((0.0, 1.0, random.random()))

    def exit_(layer: int) -> ExitEvidence:
        tokens = tuple(random.choices((1, 2), k=random.randrange(3)))
        nbest = tuple(-number() for _ in range(random.randrange(4)))
        said = {"decoder_log_prob": -number(), "decoder_scores": tuple(-number() for _ in range(random.randrange(4)))}
        return ExitEvidence(layer, tokens, number(), number(), number(), -number(), 10, nbest, number(), number(), **said)

    return tuple(map(exit_, LAYERS))


seeds = st.integers(0, 2**32)


def plain(layer: int = 2, tokens: tuple[int, ...] = (1, 2), **changes: float | tuple[float, ...]) -> ExitEvidence:
    return replace(
        ExitEvidence(
            layer, tokens, 0.1, 0.9, 0.5, -1.0, 10, (-1.0, -2.0), 0.8, 0.6, decoder_log_prob=-0.1, decoder_scores=(-1.0, -2.0)
        ),
        **changes,
    )


def test_every_policy_of_the_registry_but_fixed_is_tried_here() -> None:
    assert {policy.name for policy in POLICIES_WITH_A_THRESHOLD} == set(POLICIES) - {"fixed"}


@pytest.mark.parametrize("policy", POLICIES_WITH_A_THRESHOLD, ids=lambda policy: policy.name)
@given(seed=seeds, one=st.floats(-2, 5), other=st.floats(-2, 5))
@settings(deadline=None, max_examples=100)
def test_depth_is_monotone_in_the_threshold(policy: ThresholdPolicy, seed: int, one: float, other: float) -> None:
    evidence = drawn(seed, broken=0.1)
    low, high = (choose_exit(replace(policy, threshold=value), evidence) for value in sorted((one, other)))
    assert high <= low if type(policy).compare(0, 1) else high >= low


@pytest.mark.parametrize("policy", POLICIES_WITH_A_THRESHOLD, ids=lambda policy: policy.name)
@given(seed=seeds, threshold=st.floats(-1, 5) | st.sampled_from((math.inf, -math.inf)), bad=st.sampled_from(BROKEN))
@settings(deadline=None, max_examples=60)
def test_evidence_that_is_no_number_goes_on(policy: ThresholdPolicy, seed: int, threshold: float, bad: float) -> None:
    evidence = drawn(seed)
    numbers = [
        f.name for f in fields(ExitEvidence) if f.name not in ("layer", "tokens", "frames", "nbest_scores", "decoder_scores")
    ]
    nbest = dict.fromkeys(("nbest_scores", "decoder_scores"), (bad, -1.0))
    broken = tuple(replace(e, **nbest, **dict.fromkeys(numbers, bad)) for e in evidence)
    assert choose_exit(replace(policy, threshold=threshold), broken) == len(LAYERS) - 1


@pytest.mark.parametrize("policy", POLICIES_WITH_A_THRESHOLD, ids=lambda policy: policy.name)
@given(seed=seeds, threshold=st.floats(-1, 5))
@settings(deadline=None, max_examples=60)
def test_the_choice_never_depends_on_later_exits(policy: ThresholdPolicy, seed: int, threshold: float) -> None:
    evidence = drawn(seed, broken=0.1)
    chosen = choose_exit(replace(policy, threshold=threshold), evidence)
    assert choose_exit(replace(policy, threshold=threshold), evidence[: chosen + 1]) == chosen


@pytest.mark.parametrize("policy", POLICIES_WITH_A_THRESHOLD, ids=lambda policy: policy.name)
def test_a_threshold_that_is_no_number_is_refused(policy: ThresholdPolicy) -> None:
    with pytest.raises(UserError, match=f"policy {policy.name}: threshold is not a number"):
        replace(policy, threshold=math.nan)


def test_confidence_looks_at_the_spoken_frames() -> None:
    assert ConfidencePolicy(0.7).should_stop([plain(spoken_confidence=0.71, confidence=0.1)])
    assert not ConfidencePolicy(0.7).should_stop([plain(spoken_confidence=0.7, confidence=1.0)])


def test_silence_never_passes_for_confidence() -> None:
    assert not ConfidencePolicy(0.0).should_stop([plain(tokens=(), spoken_confidence=math.nan, confidence=1.0)])


def test_patience_counts_the_exits_that_agree() -> None:
    evidence = [plain(2, (1,)), plain(4, (1, 2)), plain(6, (1, 2)), plain(8, (1, 2))]
    assert [choose_exit(PatiencePolicy(n), evidence) for n in (1, 2, 3, 4)] == [0, 2, 3, 3]
    broken = [evidence[0], replace(evidence[1], entropy=math.nan), *evidence[2:]]
    assert choose_exit(PatiencePolicy(2), broken) == 3


def test_posterior_is_the_papers_formula() -> None:
    scores = (-1.0, -2.0, -2.5)
    expected = math.exp(-1.0) / sum(map(math.exp, scores))
    assert PosteriorPolicy(0.5, nbest=3).level([plain(nbest_scores=scores)]) == pytest.approx(expected, rel=1e-12)
    # Only the N best count, and scores far below what exp can hold are no problem.
    assert PosteriorPolicy(0.5, nbest=2).level([plain(nbest_scores=(-5000.0, -5000.0, -1.0))]) == 0.5
    assert not PosteriorPolicy(0.0).should_stop([plain(nbest_scores=())])
    with pytest.raises(UserError, match="nbest is 1"):
        PosteriorPolicy(0.5, nbest=1)


def test_learned_is_its_formula() -> None:
    policy = LearnedPolicy(
        0.5, {"least_token_doubt": 2.0, "agreeing_exits": -0.3}, {2: 0.1, 4: 0.2, 6: 0.3}, {2: 1.0, 4: 0.5, 6: 0.0}
    )
    first, second = plain(2, token_confidence=0.75), plain(4, token_confidence=0.75)
    assert policy.level([first]) == pytest.approx(math.exp(0.1 + 2 * 0.25))
    assert policy.level([first, second]) == pytest.approx(math.exp(0.2 + 2 * 0.25 - 0.3) * 0.5)
    assert policy.level([first, replace(second, token_confidence=1.0)]) > 0  # however sure: the deepest exit stays in reach
    assert math.isfinite(replace(policy, weights={"least_token_doubt": 1e9}).level([first]))
    assert math.isnan(policy.level([plain(8)]))


@given(seed=seeds, threshold=st.floats(0, 5))
@settings(deadline=None, max_examples=60)
def test_learned_never_goes_below_an_exit_that_none_below_improves(seed: int, threshold: float) -> None:
    hopeless = replace(LEARNED, threshold=threshold, returns={2: 0.5, 4: 0.0, 6: 0.25})
    assert choose_exit(hopeless, drawn(seed)) <= 1
    assert choose_exit(replace(hopeless, threshold=-1.0), drawn(seed)) == len(LAYERS) - 1  # which nothing meets


@given(seed=seeds, weights=st.tuples(*[st.sampled_from((-0.5, 0.0, 0.4, 1.2))] * len(FEATURES)))
@settings(deadline=None, max_examples=200)
def test_what_the_entropy_rules_out_the_level_does_too(seed: int, weights: tuple[float, ...]) -> None:
    policy = replace(LEARNED, weights=dict(zip(FEATURES, weights, strict=True)))
    for evidence in (drawn(seed), drawn(seed, 0.1)):
        for index in range(len(LAYERS)):
            level = policy.level(evidence[: index + 1])
            for threshold in (0.0, 0.5, level if level >= 0 else 1.0):
                asked = replace(policy, threshold=threshold)
                assert asked.should_stop(evidence[: index + 1]) == (math.isfinite(level) and level <= threshold)


def test_learned_looks_at_nothing_but_the_entropy_of_an_exit_that_it_rules_out() -> None:
    class Exit(ExitEvidence):
        tokens = property(lambda self: looks.append(self.layer) or ())  # type: ignore[assignment]

        def __init__(self, layer: int, entropy: float) -> None:
            self.__dict__.update(layer=layer, entropy=entropy, confidence=0.5)

    looks: list[int] = []
    policy = replace(LEARNED, threshold=0.1, weights={"log_entropy": 1.0, "least_token_doubt": 0.5, "agreeing_exits": -0.1})
    assert not policy.should_stop([Exit(2, 3.0)]) and not policy.should_stop([Exit(2, 3.0), Exit(4, 2.0)]) and not looks
    assert policy.should_stop([Exit(2, 3.0), Exit(4, 0.01)]) and set(looks) == {2, 4}


@pytest.mark.parametrize("bad", BROKEN)
def test_learned_takes_no_broken_expectation_for_nothing_to_gain(bad: float) -> None:
    policy = LearnedPolicy(0.5, {"least_token_doubt": 1.0}, {2: 0.0, 4: 0.0}, {2: 0.0, 4: 0.0})
    assert not policy.should_stop([plain(token_confidence=bad)])
    assert policy.should_stop([plain()])


def test_features_of_a_change() -> None:
    before, after = plain(2, (1, 2, 3, 4)), plain(4, (1, 9, 8, 3, 4))
    assert FEATURES["changed_tokens"]([before, after]) == 2 / 5
    assert FEATURES["changed_tokens"]([before, replace(before, layer=4)]) == 0
    assert FEATURES["changed_tokens"]([before, plain(4, ())]) == 4
    assert FEATURES["changed_tokens"]([plain(2, (1, 1)), plain(4, (1, 1, 1))]) == 1 / 3
    assert FEATURES["agreeing_exits"]([before, after, replace(after, layer=6)]) == 1


def test_the_least_doubt_is_that_of_the_surest_exit_so_far() -> None:
    sure, unsure, silent = plain(2, token_confidence=0.9), plain(4, token_confidence=0.6), plain(6, (), confidence=0.95)
    doubt = FEATURES["least_token_doubt"]
    assert doubt([sure]) == doubt([sure, unsure]) == pytest.approx(0.1)
    assert doubt([unsure]) == pytest.approx(0.4)
    assert doubt([sure, unsure, silent]) == pytest.approx(0.05)
    assert doubt([silent, unsure]) == pytest.approx(0.05)


@pytest.mark.parametrize("policy", POLICIES_WITH_A_THRESHOLD, ids=lambda policy: policy.name)
@given(seed=seeds)
@settings(deadline=None, max_examples=60)
def test_a_policy_looks_at_nothing_but_what_it_reads(policy: ThresholdPolicy, seed: int) -> None:
    whole = drawn(seed)
    told = ("layer", "frames", *policy.reads)
    bare = tuple(ExitEvidence(**{name: getattr(exit_, name) for name in told}) for exit_ in whole)
    for index in range(len(LAYERS)):
        one, other = policy.level(whole[: index + 1]), policy.level(bare[: index + 1])
        assert one == other or (math.isnan(one) and math.isnan(other))


@given(seed=seeds)
@settings(deadline=None, max_examples=60)
def test_features_are_numbers_where_the_evidence_is(seed: int) -> None:
    evidence = drawn(seed)
    for index in range(len(evidence)):
        assert all(math.isfinite(feature(evidence[: index + 1])) for feature in FEATURES.values())


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"weights": {"luck": 1}, "intercepts": {2: 1}, "returns": {2: 1}}, "unknown feature 'luck'"),
        ({"weights": {}, "intercepts": {2: 1}, "returns": {4: 1}}, "different exit layers"),
        ({"weights": {}, "intercepts": {2: 1}, "returns": {2: -1}}, "a return is below 0"),
        ({"weights": 3, "intercepts": {2: 1}, "returns": {2: 1}}, "weights must be a table of numbers"),
        (
            {"weights": {"log_entropy": "much"}, "intercepts": {2: 1}, "returns": {2: 1}},
            r"weights\[log_entropy\] must be of type float",
        ),
        ({"weights": {}, "intercepts": {"two": 1}, "returns": {2: 1}}, "a key of intercepts must be of type int, not 'two'"),
    ],
)
def test_a_broken_model_is_refused_in_one_line(conf: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_policy("learned", {"threshold": 0.1, **conf})


def test_a_learned_policy_of_other_exits_is_refused() -> None:
    LEARNED.check(LAYERS)
    with pytest.raises(UserError, match="fitted for exits 2 4 6 below the last, the model has 2 4; fit it again"):
        LEARNED.check((2, 4, 6))


@pytest.mark.parametrize(
    ("policy", "wrong", "right", "message"),
    [
        (EntropyPolicy(0.0), (-0.1, -math.inf), (0.0, 5.0, math.inf), "a number from 0 on"),
        (ConfidencePolicy(0.0), (-0.1, 1.5, math.inf), (0.0, 1.0), "a number from 0 to 1"),
        (PosteriorPolicy(0.0, nbest=3), (-1.0, 90.0), (0.0, 1.0), "a number from 0 to 1"),
        (DecoderPolicy(0.0), (-0.1, 90.0), (0.0, 1.0), "a number from 0 to 1"),
        (DecoderPosteriorPolicy(0.0), (-0.1, 1.5), (0.0, 1.0), "a number from 0 to 1"),
        (ClusterEntropyPolicy(0.0), (-0.1,), (0.0, 5.0, math.inf), "a number from 0 on"),
        (PatiencePolicy(0.0), (0.0, -1.0, 2.5), (1.0, 3.0, math.inf), "a whole number from 1 on"),
        (LEARNED, (-0.1,), (-1.0, 0.0, 0.5, math.inf), "a number from 0 on"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_threshold_that_no_level_can_pass_is_a_slip(policy: ThresholdPolicy, wrong, right, message: str) -> None:
    for threshold in right:
        replace(policy, threshold=threshold).check_threshold()
    for threshold in wrong:
        with pytest.raises(UserError, match=f"policy {policy.name}: threshold .*: give {message}"):
            replace(policy, threshold=threshold).check_threshold()
