"""Every policy online: in a batch as alone, as its replay; and the evidence they read against its definitions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from espnet_ee.decode.torch_session import Reduced, _reduce, _reduce_on_device
from espnet_ee.policy.base import ThresholdPolicy, choose_exit
from espnet_ee.policy.confidence import ConfidencePolicy
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.learned import LearnedPolicy
from espnet_ee.policy.patience import PatiencePolicy
from espnet_ee.policy.table import macs_of_stop
from espnet_ee.score.fit import DEFAULT_FEATURES
from tests import tiny

POLICIES = [
    EntropyPolicy(0.0),
    ConfidencePolicy(0.0),
    PatiencePolicy(0.0),
    LearnedPolicy(0.0, dict.fromkeys(DEFAULT_FEATURES, 0.1), {1: 0.0, 2: 0.0}, {1: 1.0, 2: 0.5}),
]


@pytest.fixture(scope="module")
def speech(speech) -> list[np.ndarray]:
    """The first utterances are enough here."""
    return speech[:7]


@pytest.fixture(scope="module")
def table(model, speech):
    """All exits of all utterances, decoded alone."""
    return tiny.every_exit(model, speech)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
def test_in_a_batch_as_alone_as_in_the_replay(model, speech, table, policy: ThresholdPolicy) -> None:
    found = [[row.evidence for row in whole.rows] for whole in table]
    # An exit that says nothing but blanks has no confidence: NaN, which is no threshold.
    levels = sorted(filter(math.isfinite, {policy.level(exits[: n + 1]) for exits in found for n in range(2)}))
    # Between two levels: a rounding of the last bit, as other shapes of a batch may bring, decides nothing.
    between = [(one + other) / 2 for one, other in itertools.pairwise(levels) if other - one > 1e-5]
    assert between or policy.name == "patience"  # which counts: there may be nothing between
    for threshold in (levels[0] - 1, *between[:: max(1, len(between) // 2)], levels[-1] + 1):
        chosen = replace(policy, threshold=threshold)
        recogniser = tiny.asr(model, chosen)
        batched = recogniser.recognise(speech)
        alone = [recogniser.recognise([samples])[0] for samples in speech]
        for whole, exits, one, other in zip(table, found, batched, alone, strict=True):
            index = choose_exit(chosen, exits)
            expected = whole.rows[index]
            for result in (one, other):
                assert (result.exit_layer, result.text) == (expected.evidence.layer, expected.hypothesis)
                assert result.macs == macs_of_stop(whole.rows, index, needs_every_exit=True)


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@pytest.mark.parametrize("samples", [1, 500, 2500, 60 * 16000])
def test_very_short_and_long_audio_and_silence(model, policy: ThresholdPolicy, samples: int) -> None:
    recogniser = tiny.asr(model, replace(policy, threshold=0.5))
    for audio in (np.zeros(samples, np.float32), np.full(samples, 0.1, np.float32)):
        result = recogniser.recognise([audio])[0]
        assert result.evidence.frames >= 1
        assert result.exit_layer in (1, 2, 4)


def test_the_policy_can_be_changed_between_utterances(model, speech) -> None:
    recogniser = tiny.asr(model, EntropyPolicy(0.0))
    assert recogniser.recognise(speech[:1])[0].exit_layer == 4
    recogniser.use(EntropyPolicy(float("inf")))
    assert recogniser.recognise(speech[:1])[0].exit_layer == 1


def test_the_evidence_is_what_its_names_say() -> None:
    """Against plain loops over the frames, whatever the padding holds."""
    torch.manual_seed(0)
    log_probs = (3 * torch.randn(2, 37, 5)).log_softmax(-1)
    log_probs[1, 23:] = float("nan")
    olens = torch.tensor([37, 23])
    for row, evidence in enumerate(tiny.evidence(2, log_probs, olens.tolist())):
        p = log_probs[row, : olens[row]].double().exp().numpy()
        best, labels = p.max(-1), p.argmax(-1)
        assert evidence.spoken_confidence == pytest.approx(best[labels != 0].mean(), rel=1e-5)
        tokens: list[float] = []
        last = 0
        for label, sure in zip(labels, best, strict=True):
            if label and label != last:
                tokens.append(sure)
            elif label:
                tokens[-1] = max(tokens[-1], sure)
            last = label
        assert evidence.token_confidence == pytest.approx(min(tokens), rel=1e-5)
        assert len(evidence.tokens) == len(tokens)


@pytest.mark.parametrize("reduce", [_reduce, _reduce_on_device])
def test_probabilities_need_not_be_normalised_first(reduce: Callable[..., Iterator[Reduced]]) -> None:
    """Entropies of sure and of doubtful frames, from logits far from 0, are those of the log-probabilities in double."""
    torch.manual_seed(0)
    logits = 20 + torch.linspace(0.1, 8, 60)[None, :, None] * torch.randn(1, 60, 30)
    [(labels, log_sure, entropy)] = reduce(logits, [60])
    log_p = logits[0].double().log_softmax(-1)
    assert labels.tolist() == log_p.argmax(-1).tolist()
    assert log_sure == pytest.approx(log_p.max(-1).values.numpy(), rel=1e-4, abs=2e-5)
    assert entropy == pytest.approx(-(log_p.exp() * log_p).sum(-1).numpy(), rel=1e-4, abs=2e-5)


def test_both_ways_of_reducing_a_frame_agree() -> None:
    """The one for an accelerator works on the CPU, too; a token without probability and padding trouble neither."""
    torch.manual_seed(0)
    log_probs = (4 * torch.randn(3, 50, 20)).masked_fill(torch.rand(3, 50, 20) < 0.1, -math.inf).log_softmax(-1)
    log_probs[1, 30:] = math.nan
    one, other = (list(reduce(log_probs, [50, 30, 0])) for reduce in (_reduce, _reduce_on_device))
    for (labels, best, entropy), (their_labels, their_best, their_entropy) in zip(one, other, strict=True):
        assert labels.tolist() == their_labels.tolist()
        assert best == pytest.approx(their_best, rel=1e-5, abs=1e-6)
        assert entropy == pytest.approx(their_entropy, rel=1e-5)
    assert [np.isfinite(entropy).all() for *_, entropy in one] == [True] * 3
    assert [len(labels) for labels, *_ in one] == [50, 30, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_frame_breaks_the_entropy(bad: float) -> None:
    log_probs = torch.full((1, 4, 3), 1 / 3).log()
    log_probs[0, 2, 1] = bad
    [evidence] = tiny.evidence(1, log_probs, [4])
    assert not math.isfinite(evidence.entropy)
    assert not EntropyPolicy(float("inf")).should_stop([evidence])


def test_silence_has_no_spoken_evidence() -> None:
    log_probs = torch.tensor([[[0.9, 0.1], [0.8, 0.2]]]).log()
    [evidence] = tiny.evidence(1, log_probs, [2])
    assert evidence.tokens == ()
    assert np.isnan([evidence.spoken_confidence, evidence.token_confidence]).all()
