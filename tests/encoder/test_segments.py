"""The encoder computes what was asked for, no more, and the same as the stock encoder."""

import pytest
import torch
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import tiny

from espnet_ee.encoder.base import check_exit_layers
from espnet_ee.encoder.conformer import EarlyExitConformerEncoder
from espnet_ee.errors import UsageError, UserError
from espnet_ee.plugin.compat import espnet_version

INPUT_LAYERS = ["conv2d", "conv2d1", "conv2d2", "conv2d6", "conv2d8", "linear"]


def features(*lengths: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Random features, padded with noise: padding must not matter, whatever it holds."""
    torch.manual_seed(seed)
    return torch.randn(len(lengths), max(lengths), 80), torch.tensor(lengths)


@pytest.mark.parametrize("exit_norm", ["shared", "separate"])
def test_stopping_at_an_exit_gives_its_output_of_the_full_pass_bit_for_bit(exit_norm):
    encoder = tiny.encoder([1, 2, 4], exit_norm=exit_norm)
    xs, ilens = features(90, 61)
    (final, below), _, _ = encoder(xs, ilens)
    whole = dict(below) | {4: final}
    for count, layer in enumerate([1, 2, 4], 1):
        exits = encoder.iter_exits(xs, ilens)
        stopped = [next(exits) for _ in range(count)][-1]
        assert stopped.layer == layer
        assert torch.equal(stopped.hs, whole[layer])


def test_no_block_above_the_exit_runs():
    encoder = tiny.encoder([1, 2, 4])
    ran = []
    for number, block in enumerate(encoder.encoders, 1):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    exits = encoder.iter_exits(*features(60))
    next(exits)
    next(exits)
    assert ran == [1, 2]
    next(exits)
    assert ran == [1, 2, 3, 4]


@pytest.mark.parametrize("input_layer", INPUT_LAYERS)
def test_outputs_and_olens_do_not_depend_on_the_batch(input_layer):
    encoder = tiny.encoder([2, 4], input_layer=input_layer)
    lengths = (97, 64, 63, 40, 17)
    xs, ilens = features(*lengths)
    with torch.no_grad():
        together = list(encoder.iter_exits(xs, ilens))
        for row, length in enumerate(lengths):
            alone = list(encoder.iter_exits(xs[row : row + 1, :length], ilens[row : row + 1]))
            for one, all_ in zip(alone, together, strict=True):
                assert one.olens[0] == all_.olens[row]
                frames = int(one.olens[0])
                assert one.hs.size(1) == frames
                torch.testing.assert_close(one.hs[0], all_.hs[row, :frames], atol=1e-5, rtol=1e-4)


@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_selecting_rows_changes_nothing_for_them(data):
    encoder = tiny.encoder([1, 2, 4])
    lengths = data.draw(st.lists(st.integers(7, 90), min_size=2, max_size=5))
    rows = data.draw(st.lists(st.sampled_from(range(len(lengths))), min_size=1, unique=True))
    xs, ilens = features(*lengths)
    with torch.no_grad():
        first = encoder.advance(encoder.start(xs, ilens))
        whole = encoder.advance(first.state)
        kept = encoder.advance(first.state.select(rows))
    assert kept.olens.tolist() == [int(whole.olens[row]) for row in rows]
    assert kept.hs.size(1) == max(kept.olens)
    for place, row in enumerate(rows):
        frames = int(kept.olens[place])
        torch.testing.assert_close(kept.hs[place, :frames], whole.hs[row, :frames], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("positions", ["rel", "abs"])
def test_shared_norm_is_stock_interctc(positions):
    kinds = {
        "rel": {},
        "abs": {"pos_enc_layer_type": "abs_pos", "selfattention_layer_type": "selfattn"},
    }[positions]
    ours = tiny.encoder([1, 2, 4], **kinds)
    torch.manual_seed(0)
    stock = ConformerEncoder(80, interctc_layer_idx=[1, 2], **tiny.CONFORMER, **tiny.STOCK_ONLY, **kinds).eval()
    assert list(ours.state_dict()) == list(stock.state_dict())
    stock.load_state_dict(ours.state_dict())
    # 202511 leaks padding into its neighbours: only there must the batch be of one length.
    xs, ilens = features(64, 64, 64) if espnet_version() == "202511" else features(64, 50, 21)
    (out, below), olens, _ = ours(xs, ilens)
    (stock_out, stock_below), stock_olens, _ = stock(xs, ilens)
    assert torch.equal(olens, stock_olens)
    assert torch.equal(out, stock_out)
    assert [layer for layer, _ in below] == [layer for layer, _ in stock_below]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(below, stock_below, strict=True))


def test_every_stock_default_is_visible_to_print_config():
    from espnet2.utils.get_default_kwargs import get_default_kwargs

    ours, stock = get_default_kwargs(EarlyExitConformerEncoder), get_default_kwargs(ConformerEncoder)
    gone = {"interctc_layer_idx", "interctc_use_conditioning", "ctc_trim", "layer_drop_rate"}
    assert {"exit_layers", "exit_norm"} <= ours.keys()
    assert stock.keys() - ours.keys() == gone
    assert {key for key in stock.keys() & ours.keys() if stock[key] != ours[key]} == {"rel_pos_type"}


@pytest.mark.parametrize(
    ("exit_layers", "message"),
    [
        ([2, 5], "exit layer 5 is beyond the last block; num_blocks is 4"),
        ([1, 2], "lack the last block"),
        ([2, 2, 4], "must rise"),
        ([0, 4], "must rise, from 1"),
        ([], "give block numbers"),
        ([1.5, 4], "give block numbers"),
        ([True, 4], "give block numbers"),
    ],
)
def test_exit_layers_are_checked(exit_layers, message):
    with pytest.raises(UsageError, match=message):
        check_exit_layers(exit_layers, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lineer_units": 3}, "encoder_conf: unknown key 'lineer_units'"),
        ({"interctc_layer_idx": [2]}, "unknown key 'interctc_layer_idx'"),
        ({"rel_pos_type": "legacy"}, "rel_pos_type"),
        ({"exit_norm": "both"}, "exit_norm"),
        ({"input_layer": "embed"}, "input_layer"),
    ],
)
def test_unknown_settings_are_named(changes, message):
    with pytest.raises(UsageError, match=message):
        tiny.encoder([2, 4], **changes)


def test_too_short_input_says_how_many_frames_are_needed():
    encoder = tiny.encoder([4])
    assert encoder.min_frames == 7
    assert next(encoder.iter_exits(*features(7))).olens.tolist() == [1]
    with pytest.raises(UserError, match="6 feature frames are too few.* 7"):
        encoder.start(*features(6))
