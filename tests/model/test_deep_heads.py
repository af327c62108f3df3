"""Heads that compute: no padding reaches a frame, what they cost is counted, they train and have no stock form."""

from __future__ import annotations

import pytest
import torch

from espnet_ee.encoder.counting import counter
from espnet_ee.errors import UserError
from espnet_ee.model.deep_heads import ConvolutionHead, LSTMHead
from espnet_ee.model.heads import exit_heads_of, mac_table
from tests import tiny

KINDS = {"lstm": LSTMHead, "convolution": ConvolutionHead}


@pytest.mark.parametrize("kind", KINDS)
def test_the_batch_does_not_matter(kind: str) -> None:
    torch.manual_seed(0)
    head = KINDS[kind](16, 8, 0.5).eval()
    hs, olens = torch.randn(4, 20, 16), torch.tensor([20, 3, 11, 1])
    with torch.no_grad():
        together = head(hs, olens)
        for row, length in enumerate(olens.tolist()):
            alone = head(hs[row : row + 1, :length], olens[row : row + 1])
            torch.testing.assert_close(alone[0], together[row, :length], atol=1e-6, rtol=1e-5)
    assert together.shape == (4, 20, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cost_is_what_the_layers_compute(kind: str) -> None:
    head = KINDS[kind](16, 8, 0.0).eval()
    for frames in (1, 2, 7):
        with counter() as macs:
            head(torch.randn(1, frames, 16), torch.tensor([frames]))
            counted = macs()
        if kind == "lstm":  # torch counts no LSTM: two ways of four gates of 8 units that read 16 + 8 numbers
            assert not counted or counted <= head.macs()(frames)
            counted = frames * (2 * 4 * 8 * (16 + 8) + 16 * 8)
        assert head.macs()(frames) == counted


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_has_them_below_the_final_exit(kind: str) -> None:
    model = tiny.model(model_conf={"ctc_weight": 1.0, "exit_heads": kind})
    heads = exit_heads_of(model)
    assert [type(heads.by_layer[layer]) for layer in (1, 2)] == [KINDS[kind]] * 2
    assert heads.by_layer[1].stock_state() is None and heads.by_layer[4].stock_state() is not None
    assert mac_table(model).head_macs(1, 10) > mac_table(model).head_macs(4, 10)
    speech = torch.randn(2, 8000)
    loss, _, _ = model.train()(speech, torch.tensor([8000, 6000]), torch.tensor([[3, 4], [5, 3]]), torch.tensor([2, 2]))
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.exit_ctc.parameters())


def test_an_unknown_kind_names_the_known() -> None:
    with pytest.raises(UserError, match=r"exit_heads 'gru'.*convolution, lstm, separate, shared"):
        tiny.model(model_conf={"ctc_weight": 1.0, "exit_heads": "gru"})
