"""The fast conformer: what every encoder promises, and what it is for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from espnet_ee.encoder.fast_blocks import MaskedBatchNorm
from espnet_ee.encoder.fast_conformer import EarlyExitFastConformerEncoder
from espnet_ee.errors import UsageError, UserError
from tests import tiny

SIZES: dict[str, Any] = {"output_size": 16, "attention_heads": 2, "linear_units": 24, "num_blocks": 4, "cnn_module_kernel": 7}


def encoder(seed: int = 0, **changes: Any) -> EarlyExitFastConformerEncoder:
    torch.manual_seed(seed)
    made = EarlyExitFastConformerEncoder(80, **{"exit_layers": [1, 2, 4], **SIZES, **changes})
    tiny.stir_batch_norm(made)
    return made.eval()


@pytest.mark.parametrize("subsampling", [4, 6, 8])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_the_batch_does_not_matter(subsampling: int, norm: str) -> None:
    tiny.assert_the_batch_does_not_matter(encoder(subsampling=subsampling, convolution_norm=norm))


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_nor_does_padding_in_training(norm: str) -> None:
    """The statistics that a batch leaves, its outputs and its gradients are those of its real frames."""
    xs, ilens = torch.randn(2, 90, 80, generator=torch.Generator().manual_seed(0)), torch.tensor([60, 90])
    results = []
    for noise in (0.0, 100.0):
        made = encoder(convolution_norm=norm, dropout_rate=0, positional_dropout_rate=0, attention_dropout_rate=0).train()
        padded = xs.clone()
        padded[0, 60:] = noise
        (final, _), olens, _ = made(padded, ilens)
        sum(final[row, :length].sum() for row, length in enumerate(olens)).backward()
        results.append([*(buffer.clone() for buffer in made.buffers()), *(p.grad for p in made.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_masked_batch_norm_is_batch_norm_where_nothing_is_padded() -> None:
    ours, theirs = MaskedBatchNorm(8), torch.nn.BatchNorm1d(8)
    for _ in range(3):
        xs = torch.randn(4, 11, 8) * 3 + 1
        torch.testing.assert_close(ours(xs, None), theirs(xs.transpose(1, 2)).transpose(1, 2))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(xs, None), theirs(xs.transpose(1, 2)).transpose(1, 2))


def test_rotary_positions_are_relative() -> None:
    """Attention alone: moving all frames by one gives the same, as only distances count."""
    attention = encoder().encoders[0].attention
    from espnet_ee.encoder.fast_blocks import rotary

    xs = torch.randn(1, 9, 16)
    cosines, sines = rotary(12, 8, xs)
    with torch.no_grad():
        first = attention(xs, cosines[:9], sines[:9], None)
        moved = attention(xs, cosines[3:], sines[3:], None)
        other = attention(xs, cosines[:9].flip(0) * 0 + 1, sines[:9] * 0, None)  # no positions at all
    torch.testing.assert_close(first, moved, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(first, other, atol=1e-3)


def test_stopping_computes_no_block_above() -> None:
    made, computed = encoder(), []
    for number, block in enumerate(made.encoders, 1):
        block.register_forward_hook(lambda *_, number=number: computed.append(number))
    exits = made.iter_exits(torch.randn(1, 64, 80), torch.tensor([64]))
    first, second = next(exits), next(exits)
    assert (first.layer, second.layer, computed) == (1, 2, [1, 2])
    (final, below), _, _ = made(torch.randn(1, 64, 80), torch.tensor([64]))
    assert [layer for layer, _ in below] == [1, 2] and final.shape == (1, 15, 16)


def test_a_kernel_may_be_longer_than_an_utterance() -> None:
    made = encoder(cnn_module_kernel=31)
    output = list(made.iter_exits(torch.randn(1, 7, 80), torch.tensor([7])))[-1]
    assert output.hs.shape == (1, 1, 16)
    with pytest.raises(UserError, match="pad the input to 7"):
        list(made.iter_exits(torch.randn(1, 6, 80), torch.tensor([6])))


def test_the_front_is_cheap_and_depth_is_what_costs() -> None:
    made = EarlyExitFastConformerEncoder(80, [2, 4, 6, 8, 10, 12], linear_units=1792, subsampling=8)
    table, frames = made.macs(), 1000
    full = table.encoder_macs(12, frames)
    front = table.encoder_macs(2, frames) - table.block_macs(2, table.encoder_frames(frames))
    assert front <= 0.02 * full
    assert all(table.encoder_macs(layer, frames) <= (layer / 12 + 0.03) * full for layer in made.exit_layers)


def test_stochastic_depth_skips_upper_blocks_more_often_and_none_in_evaluation() -> None:
    made = encoder(stochastic_depth_rate=0.8)
    torch.manual_seed(0)
    assert {made.depth_share(number) for number in range(1, 5)} == {1.0}
    made.train()
    skipped = [sum(made.depth_share(number) == 0 for _ in range(400)) / 400 for number in range(1, 5)]
    assert skipped == sorted(skipped) and abs(skipped[0] - 0.2) < 0.08 and abs(skipped[3] - 0.8) < 0.08
    means = [sum(made.depth_share(4) for _ in range(2000)) / 2000]
    assert abs(means[0] - 1) < 0.2  # what is kept counts for what is skipped


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dropout_rate": "1e-1"}, "dropout_rate '1e-1' is no rate"),  # YAML takes it for a word
        ({"stochastic_depth_rate": 1.0}, "stochastic_depth_rate 1.0 is no rate"),
        ({"num_blocks": None}, "num_blocks None is no whole number from 1 on"),
        ({"attention_heads": 0}, "attention_heads 0 is no whole number"),
        ({"output_size": 16.0}, "output_size 16.0 is no whole number"),
        ({"exit_layers": 4}, "exit_layers is 4; give block numbers"),
        ({"subsampling": 5}, "subsampling 5"),
        ({"subsampling": [4]}, r"subsampling \[4\]"),
        ({"attention_heads": 3}, "attention_heads 3"),
        ({"output_size": 6, "attention_heads": 2}, "attention_heads 2"),
        ({"cnn_module_kernel": 8}, "cnn_module_kernel 8"),
        ({"convolution_norm": "group"}, "convolution_norm 'group'"),
        ({"exit_layers": [1, 2]}, "lack the last block"),
        (
            {"half_rate": [2]},
            r"half_rate is \[2\]; give the first and the last of the blocks at half rate, such as \[2, 3\] of 4",
        ),
        ({"half_rate": [3, 2]}, r"half_rate is \[3, 2\]"),
        ({"half_rate": [0, 2]}, r"half_rate is \[0, 2\]"),
        ({"half_rate": [2, 5]}, r"half_rate is \[2, 5\]"),
        ({"half_rate": [True, 2]}, r"half_rate is \[True, 2\]"),
        ({"half_rate": "2-3"}, "half_rate is '2-3'"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        encoder(**changes)
