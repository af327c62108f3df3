"""CR-CTC: one warp, two masked copies, exits that are to agree; nothing of it in evaluation."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from espnet_ee.errors import UsageError, UserError
from espnet_ee.model.consistency import ConsistencyTerm, CopyingSpecAug, divergence
from espnet_ee.model.term import ExitBatch
from espnet_ee.model.terms import read_schedule
from tests import tiny

MASKS = {
    "apply_time_warp": True,
    "time_warp_window": 5,
    "num_freq_mask": 2,
    "num_time_mask": 3,
    "time_mask_width_range": [1, 12],
}
BATCH = (torch.randn(2, 8000), torch.tensor([8000, 6000]), torch.tensor([[3, 4, 5], [5, 3, -1]]), torch.tensor([3, 2]))


def model(terms: dict[str, Any], **changes: Any) -> torch.nn.Module:
    conf = {"ctc_weight": 1.0, "exit_terms": terms}
    return tiny.model(model_conf=conf, specaug="specaug", specaug_conf=MASKS, **changes).train()


def test_the_copies_share_their_frames_and_differ_in_their_masks() -> None:
    copying = model({"ctc": 1.0, "cr_ctc": 0.2}).specaug
    assert isinstance(copying, CopyingSpecAug)
    features = torch.rand(3, 60, 80) + 1  # never 0, which masks are
    warped = []
    copying.specaug.time_warp.register_forward_hook(lambda *arguments: warped.append(arguments[2][0]))
    copies, lengths = copying(features.repeat(2, 1, 1), torch.tensor([60, 50, 40] * 2))
    assert copies.shape == (6, 60, 80) and lengths.tolist() == [60, 50, 40, 60, 50, 40] and len(warped) == 1
    first, second = copies.chunk(2)
    for copy in (first, second):
        assert torch.equal(copy[copy != 0], warped[0][copy != 0])
    assert ((first == 0) != (second == 0)).any()


def test_the_term_by_hand() -> None:
    """One exit, one utterance of two frames and one of padding, two tokens."""
    first, second = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.3, 0.7]]), torch.tensor([[0.8, 0.2], [0.9, 0.1], [0.6, 0.4]])
    logits = torch.stack([first, second]).log()[None].requires_grad_()
    olens, nothing = torch.tensor([2, 2]), torch.zeros(2, dtype=torch.long)
    term = ConsistencyTerm(model({"ctc": 1.0})).train()
    batch = ExitBatch((1,), [], logits, olens, nothing[:, None], nothing)
    there = 0.8 * torch.tensor(0.8 / 0.5).log() + 0.2 * torch.tensor(0.2 / 0.5).log()
    back = 0.5 * torch.tensor(0.5 / 0.8).log() + 0.5 * torch.tensor(0.5 / 0.2).log()
    value = term(batch)
    assert value.shape == (1,)
    torch.testing.assert_close(value[0].detach(), (there + back) / 2)
    value.sum().backward()
    assert logits.grad[0, :, :1].abs().min() > 0 and not logits.grad[0, :, 2].any()
    assert not term.eval()(batch).any()


def test_a_target_gets_no_gradient() -> None:
    target, prediction = torch.randn(5).log_softmax(-1).requires_grad_(), torch.randn(5).log_softmax(-1).requires_grad_()
    divergence(target, prediction).sum().backward()
    assert target.grad is None and prediction.grad is not None


def test_the_weight_rises_from_nothing_and_goes_on_after_a_checkpoint() -> None:
    made = model({"ctc": 1.0, "cr_ctc": {"weight": 0.2, "warmup": 4}})
    shares = []
    for _ in range(6):
        _, stats, _ = made(*BATCH)
        shares.append(float(stats["cr_ctc_exit04"]))
    assert shares[0] == 0 and all(share > 0 for share in shares[1:])
    assert [made.exit_terms.schedules["cr_ctc"].weight_at(step) for step in (0, 1, 2, 4, 9)] == [0, 0.05, 0.1, 0.2, 0.2]
    other = model({"ctc": 1.0, "cr_ctc": {"weight": 0.2, "warmup": 4}})
    other.load_state_dict(made.state_dict())
    assert int(other.exit_terms.step) == 6


def test_a_term_may_begin_after_some_steps() -> None:
    schedule = read_schedule("cr_ctc", {"weight": 0.2, "warmup": 4, "after": 10})
    assert [schedule.weight_at(step) for step in (0, 9, 10, 11, 14, 99)] == [0, 0, 0, 0.05, 0.2, 0.2]
    assert [read_schedule("cr_ctc", {"weight": 0.2, "after": 2}).weight_at(step) for step in (0, 1, 2)] == [0, 0, 0.2]
    made = model({"ctc": 1.0, "cr_ctc": {"weight": 0.2, "after": 2}})
    shares = [float(made(*BATCH)[1]["cr_ctc_exit04"]) for _ in range(4)]
    assert shares[:2] == [0, 0] and all(share > 0 for share in shares[2:])


def test_evaluation_sees_one_copy_and_the_plain_loss() -> None:
    with_term, without = model({"ctc": 1.0, "cr_ctc": 0.2}).eval(), model({"ctc": 1.0}).eval()
    with torch.no_grad():
        loss, stats, weight = with_term(*BATCH)
        torch.testing.assert_close(loss, without(*BATCH)[0])
    assert weight == 2 and stats["cr_ctc_exit04"] == 0
    assert set(with_term.state_dict()) == set(without.state_dict())


def test_training_brings_the_copies_together() -> None:
    torch.manual_seed(0)
    made = model({"ctc": 1.0, "cr_ctc": 1.0})
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss, _, _ = made(*BATCH)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_without_masks_there_is_nothing_to_compare() -> None:
    with pytest.raises(UserError, match="cr_ctc.*specaug"):
        tiny.model(model_conf={"ctc_weight": 1.0, "exit_terms": {"ctc": 1.0, "cr_ctc": 0.2}})


@pytest.mark.parametrize(
    "setting",
    [0, -1, True, "0.2", None, {}, {"warmup": 3}, {"weight": 1.0, "warmup": -1}, {"weight": 1, "after": 1.5}, {"wait": 1}],
)
def test_settings_that_are_none(setting: Any) -> None:
    with pytest.raises(UsageError, match="exit_terms: cr_ctc"):
        read_schedule("cr_ctc", setting)
