"""Combining exits: the average changes the text only, in a batch as alone, online as in the table; weights that help are found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from espnet_ee.decode.combine import check_weights, combined
from espnet_ee.decode.fit_combine import fit_on, fit_weights
from espnet_ee.decode.recognizer import EarlyExitRecognizer
from espnet_ee.errors import UserError
from espnet_ee.policy.base import choose_exit
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.policy.table import macs_of_stop
from espnet_ee.text import collapse
from tests import tiny

WEIGHTS = {1: {1: 1.0}, 2: {1: 0.5, 2: 0.5}, 4: {1: 0.2, 2: 0.3, 4: 0.5}}
ALONE = {1: {1: 1.0}, 2: {1: 0.0, 2: 1.0}, 4: {1: 0.0, 2: 0.0, 4: 1.0}}


@pytest.fixture(scope="module")
def speech(speech) -> list[np.ndarray]:
    """The first utterances are enough here."""
    return speech[:5]


def test_all_weight_on_the_last_exit_changes_nothing(model, speech) -> None:
    plain = EarlyExitRecognizer(model, FixedExitPolicy(4), read_every_exit=True).recognize(speech)
    same = EarlyExitRecognizer(model, FixedExitPolicy(4), combine=ALONE).recognize(speech)
    assert [r.text for r in same] == [r.text for r in plain]
    assert [r.token_ids for r in same] == [r.evidence.tokens for r in plain]


def test_the_text_is_that_of_the_average_and_the_evidence_is_not_touched(model, speech) -> None:
    plain = EarlyExitRecognizer(model, FixedExitPolicy(4), read_every_exit=True)
    mixed = EarlyExitRecognizer(model, FixedExitPolicy(4), combine=WEIGHTS)
    for samples in speech:
        one, other = plain.recognize([samples])[0], mixed.recognize([samples])[0]
        assert [row.evidence for row in one.rows] == pytest.approx([row.evidence for row in other.rows])
        features = plain.features(samples)[None]
        with torch.inference_mode():
            outputs = model.encoder.iter_exits(features, torch.tensor([features.size(1)]))
            log_probs = [model.log_probs(output.layer, output.hs)[0] for output in outputs]
        average = 0.2 * log_probs[0] + 0.3 * log_probs[1] + 0.5 * log_probs[2]
        assert other.token_ids == tuple(collapse(average.argmax(-1).tolist()))
        frames = one.evidence.frames
        assert other.macs - one.macs == (1 + 2 + 3) * frames * len(tiny.TOKENS)


def test_online_is_the_replay_and_the_batch_does_not_matter(model, speech) -> None:
    whole = EarlyExitRecognizer(model, FixedExitPolicy(4), read_every_exit=True, combine=WEIGHTS).recognize(speech)
    values = sorted(min(row.evidence.entropy for row in one.rows[:-1]) for one in whole)
    policy = EntropyPolicy((values[2] + values[3]) / 2)
    online = EarlyExitRecognizer(model, policy, combine=WEIGHTS)
    batched, alone = online.recognize(speech), [online.recognize([samples])[0] for samples in speech]
    assert len({r.exit_layer for r in batched}) > 1
    for table, together, single in zip(whole, batched, alone, strict=True):
        index = choose_exit(policy, [row.evidence for row in table.rows])
        expected = table.rows[index]
        for result in (together, single):
            assert (result.exit_layer, result.text) == (expected.evidence.layer, expected.hypothesis)
            assert result.macs == macs_of_stop(table.rows, index, needs_every_exit=True)


def test_weights_of_another_model_are_refused(model) -> None:
    with pytest.raises(UserError, match="exit 4 needs weights of exits 1 2 4, has 1 4; fit them"):
        EarlyExitRecognizer(model, FixedExitPolicy(4), combine={**WEIGHTS, 4: {1: 0.5, 4: 0.5}})
    with pytest.raises(UserError, match="exit 1 needs weights of exits 1, has none"):
        check_weights({}, (1, 2, 4))


def test_the_fit_finds_the_exit_that_knows() -> None:
    """Of two exits one is right and one is noise: the weight goes where the references are."""
    torch.manual_seed(0)
    labels = torch.randint(1, 6, (8, 5))
    path = torch.stack([labels, torch.zeros_like(labels)], dim=-1).flatten(1)  # each token, then a blank
    good = (torch.nn.functional.one_hot(path, 6) * 3.0 + torch.randn(8, 10, 6)).log_softmax(-1)
    noise = (3 * torch.randn(8, 10, 6)).log_softmax(-1)
    full, length = torch.full((8,), 10), torch.full((8,), 5)
    first, second = fit_weights(torch.stack([good, noise]), full, labels, length, blank=0)
    assert first == [1.0]
    assert second[0] > 0.7
    assert sum(second) == pytest.approx(1.0)
    same = fit_weights(torch.stack([noise, good]), full, labels, length, blank=0)[1]
    assert same[1] > 0.7


def test_fitted_weights_fit_the_model(model, speech) -> None:
    weights = fit_on(model, speech, [[3, 4], [5], [3, 3, 6], [4], [6, 5]])
    check_weights(weights, (1, 2, 4))
    EarlyExitRecognizer(model, FixedExitPolicy(2), combine=weights).recognize(speech[:1])
    with pytest.raises(UserError, match="more labels than its utterance has frames"):
        fit_on(model, speech[:1], [[3, 4] * 500])


def test_combined_is_linear() -> None:
    one, two = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.allclose(combined([one, two], [0.25, 0.75]), 0.25 * one + 0.75 * two)
