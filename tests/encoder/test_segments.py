"""The encoder computes what was asked for, no more, and the same as the stock encoder."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder
from espnet2.asr.encoder.rnn_encoder import RNNEncoder
from espnet2.tasks.asr import encoder_choices
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ee.encoder import base
from espnet_ee.encoder.base import SegmentEncoder, check_exit_layers
from espnet_ee.encoder.espnet_blocks import INPUT_LAYERS, LAYER_DROP, REPLACED, BlockCarry, BlockListEncoder
from espnet_ee.errors import UsageError, UserError
from espnet_ee.host.compat import espnet_version
from espnet_ee.plugin.register import register
from tests import tiny

register()


def features(*lengths: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Random features, padded with noise: padding must not matter, whatever it holds."""
    torch.manual_seed(seed)
    return torch.randn(len(lengths), max(lengths), 80), torch.tensor(lengths)


MULTICONV = [
    {},
    {"multicgmlp_type": "sum"},
    {"multicgmlp_type": "weighted_sum", "macaron_style": True},
    {"multicgmlp_type": "concat", "use_linear_after_conv": True},
    {"use_cnn_module": False, "input_layer": "conv2d6"},
    {"pos_enc_layer_type": "abs_pos", "selfattention_layer_type": "selfattn", "input_layer": "linear"},
]
every_backbone = pytest.mark.parametrize("backbone", tiny.BACKBONES)


@every_backbone
@pytest.mark.parametrize("exit_norm", ["shared", "separate", "none"])
def test_stopping_at_an_exit_gives_its_output_of_the_full_pass_bit_for_bit(backbone, exit_norm):
    encoder = tiny.encoder([1, 2, 4], backbone=backbone, exit_norm=exit_norm)
    xs, ilens = features(90, 61)
    (final, below), _, _ = encoder(xs, ilens)
    whole = dict(below) | {4: final}
    for count, layer in enumerate([1, 2, 4], 1):
        exits = encoder.iter_exits(xs, ilens)
        stopped = [next(exits) for _ in range(count)][-1]
        assert stopped.layer == layer
        assert torch.equal(stopped.hs, whole[layer])


@every_backbone
def test_no_block_above_the_exit_runs(backbone):
    encoder = tiny.encoder([1, 2, 4], backbone=backbone)
    ran = []
    for number, block in enumerate(encoder.encoders, 1):
        block.register_forward_hook(lambda *_, number=number: ran.append(number))
    exits = encoder.iter_exits(*features(60))
    next(exits)
    next(exits)
    assert ran == [1, 2]
    next(exits)
    assert ran == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("backbone", "changes"),
    [
        *(("e_branchformer", {"input_layer": layer}) for layer in INPUT_LAYERS),
        *(("conformer", {"input_layer": layer}) for layer in ("linear", "conv2d", "conv2d8")),
        ("transformer", {"input_layer": "conv1d2"}),
        ("transformer", {}),
        ("transformer", {"normalize_before": False, "input_layer": "linear"}),
        *((backbone, {"rel_pos_type": "legacy"}) for backbone in tiny.BACKBONES if backbone != "transformer"),
        ("branchformer", {}),
        ("branchformer", {"merge_method": "learned_ave", "use_linear_after_conv": True}),
        ("branchformer", {"merge_method": "fixed_ave", "input_layer": "linear"}),
        ("e_branchformer", {}),
        ("e_branchformer", {"use_ffn": False, "merge_conv_kernel": 31, "input_layer": "linear"}),
        *(("multiconv_conformer", changes) for changes in MULTICONV),
    ],
    ids=str,
)
def test_outputs_and_olens_do_not_depend_on_the_batch(backbone, changes):
    tiny.assert_the_batch_does_not_matter(tiny.encoder([2, 4], backbone=backbone, **changes))


@every_backbone
@given(data=st.data())
@settings(max_examples=10, deadline=None)
def test_selecting_rows_changes_nothing_for_them(backbone, data):
    encoder = tiny.encoder([1, 2, 4], backbone=backbone)
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


@every_backbone
def test_where_nothing_is_padded_there_is_no_mask_and_nothing_changes(backbone):
    encoder = tiny.encoder([1, 2, 4], backbone=backbone)
    with torch.no_grad():
        full = encoder.start(*features(64, 64))
        masks = torch.ones(2, 1, full.hidden.size(1), dtype=torch.bool)
        masked = replace(full, carry=BlockCarry(full.carry.positions, masks))
        assert full.carry.masks is None
        while full.layer < 4:
            ours, stock = encoder.advance(full), encoder.advance(masked)
            assert torch.equal(ours.hs, stock.hs)
            full, masked = ours.state, stock.state
        padded = encoder.start(*features(64, 50, 64))
    assert padded.carry.masks.sum(dim=-1).flatten().tolist() == padded.olens.tolist()
    assert padded.select([0, 1]).carry.masks.shape == (2, 1, int(padded.olens[0]))
    assert padded.select([0, 2]).carry.masks is None and padded.select([1]).carry.masks is None


ABSOLUTE = {"pos_enc_layer_type": "abs_pos", "selfattention_layer_type": "selfattn"}


@pytest.mark.parametrize(
    ("backbone", "exit_norm", "changes"),
    [
        ("conformer", "shared", {}),
        ("conformer", "shared", ABSOLUTE),
        ("transformer", "shared", {}),
        ("transformer", "shared", {"normalize_before": False}),
        ("e_branchformer", "none", {}),
        ("branchformer", "shared", {}),
        *(("multiconv_conformer", "shared", changes) for changes in MULTICONV),
    ],
    ids=str,
)
def test_shared_norm_is_stock_interctc(backbone, exit_norm, changes):
    ours = tiny.encoder([1, 2, 4], backbone=backbone, exit_norm=exit_norm, **changes)
    cls, conf = tiny.BACKBONES[backbone]
    stock_class = cls.__bases__[1]
    stock_only = tiny.STOCK_ONLY if "conformer" in backbone else {}
    # The Branchformer has no InterCTC: there only the final outputs can be compared.
    interctc = {} if backbone == "branchformer" else {"interctc_layer_idx": [1, 2]}
    stock = stock_class(80, **conf, **changes, **stock_only, **interctc).eval()
    assert list(ours.state_dict()) == list(stock.state_dict())
    stock.load_state_dict(ours.state_dict())
    # 202511 leaks padding into its neighbours: only there must the batch be of one length.
    xs, ilens = features(64, 64, 64) if espnet_version() == "202511" else features(64, 50, 21)
    (out, below), olens, _ = ours(xs, ilens)
    whole, stock_olens, _ = stock(xs, ilens)
    stock_out, stock_below = whole if interctc else (whole, below)
    assert torch.equal(olens, stock_olens)
    assert torch.equal(out, stock_out)
    assert [layer for layer, _ in below] == [layer for layer, _ in stock_below]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(below, stock_below, strict=True))


@every_backbone
def test_every_stock_default_is_visible_to_print_config(backbone):
    from espnet2.utils.get_default_kwargs import get_default_kwargs

    cls = tiny.BACKBONES[backbone][0]
    ours, stock = get_default_kwargs(cls), get_default_kwargs(cls.__bases__[1])
    assert {"exit_layers", "exit_norm"} <= ours.keys()
    hidden = {*REPLACED} if cls.drops_layers else {*REPLACED, LAYER_DROP}
    assert stock.keys() - ours.keys() == stock.keys() & hidden
    changed = {"rel_pos_type"} if "conformer" in backbone else set()
    assert {key for key in stock.keys() & ours.keys() if stock[key] != ours[key]} == changed


def test_an_encoder_without_a_list_of_blocks_is_refused_by_name():
    class EarlyExitRNNEncoder(BlockListEncoder, RNNEncoder):
        """No list of blocks: its layers are inside one RNN."""

    with pytest.raises(UsageError, match="EarlyExitRNNEncoder has no plain list of blocks .* block by block"):
        EarlyExitRNNEncoder(80, [1, 4])


@every_backbone
def test_other_features_than_it_takes_are_one_line(backbone):
    with pytest.raises(UserError, match=r"features of 40 values a frame, where EarlyExit\w+Encoder takes 80; give"):
        tiny.encoder([2, 4], backbone=backbone).start(torch.zeros(1, 50, 40), torch.tensor([50]))


@pytest.mark.parametrize(
    ("exit_layers", "message"),
    [
        ([2, 5], "exit layer 5 is beyond the last block; num_blocks is 4"),
        ([1, 2], "lack the last block"),
        ([2, 2, 4], "must rise"),
        ([0, 4], "must rise, from 1"),
        ([], "give block numbers"),
        (4, "exit_layers is 4; give block numbers"),
        ([1.5, 4], "give block numbers"),
        ([True, 4], "give block numbers"),
    ],
)
def test_exit_layers_are_checked(exit_layers, message):
    with pytest.raises(UsageError, match=message):
        check_exit_layers(exit_layers, 4)


@pytest.mark.parametrize(
    ("backbone", "changes", "message"),
    [
        ("conformer", {"lineer_units": 3}, "encoder_conf: unknown key 'lineer_units'"),
        ("conformer", {"interctc_layer_idx": [2]}, "interctc_layer_idx .2.: name the exits in exit_layers"),
        ("conformer", {"ctc_trim": True}, "ctc_trim True: an early exit cannot honour it; remove it"),
        ("conformer", {"exit_norm": "both"}, "exit_norm"),
        ("conformer", {"input_layer": "embed"}, "input_layer"),
        ("transformer", {"positionwise_layer_type": "conv1d"}, "positionwise_layer_type .* use linear"),
        ("transformer", {"pos_enc_layer_type": "conv"}, "pos_enc_layer_type"),
        ("e_branchformer", {"attention_layer_type": "fast_selfattn"}, "attention_layer_type"),
        ("e_branchformer", {"gradient_checkpoint_layers": [1]}, "gradient_checkpoint_layers .1.: an early exit cannot"),
        ("multiconv_conformer", {"lineer_units": 3}, "unknown key 'lineer_units'; .*multicgmlp_type"),
    ],
)
def test_unknown_settings_are_named(backbone, changes, message):
    with pytest.raises(UsageError, match=message):
        tiny.encoder([2, 4], backbone=backbone, **changes)


@every_backbone
def test_stock_settings_that_change_nothing_are_taken(backbone):
    """Recipes write them down: 57 of 70 of ESPnet's E-Branchformer configurations have layer_drop_rate 0.0."""
    plain = tiny.encoder([2, 4], backbone=backbone)
    written = tiny.encoder([2, 4], backbone=backbone, **REPLACED, layer_drop_rate=0.0)
    assert list(plain.state_dict()) == list(written.state_dict())
    xs, ilens = features(64)
    assert torch.equal(plain(xs, ilens)[0][0], written(xs, ilens)[0][0])


def test_layers_are_dropped_in_training_as_in_stock():
    """Where nothing else is random, and both draw the same numbers."""
    conf = {**tiny.BACKBONES["e_branchformer"][1], "dropout_rate": 0.0, "positional_dropout_rate": 0.0, "layer_drop_rate": 0.5}
    ours = tiny.encoder([2, 4], backbone="e_branchformer", **conf, exit_norm="none").train()
    stock = EBranchformerEncoder(80, **conf).train()
    stock.load_state_dict(ours.state_dict())
    xs, ilens = features(64, 64)
    seen = set()
    for seed in range(8):
        torch.manual_seed(seed)
        (final, _), _, _ = ours(xs, ilens)
        torch.manual_seed(seed)
        torch.testing.assert_close(final, stock(xs, ilens)[0])
        seen.add(float(final.detach().sum()))
    assert len(seen) > 3
    whole = tiny.encoder([2, 4], backbone="e_branchformer", exit_norm="none")
    whole.load_state_dict(ours.state_dict())
    assert torch.equal(ours.eval()(xs, ilens)[0][0], whole(xs, ilens)[0][0])


@pytest.mark.parametrize("backbone", ["e_branchformer", "multiconv_conformer"])
def test_a_dropped_layer_has_a_gradient_where_other_processes_wait_for_it(backbone, monkeypatch):
    ran = []
    monkeypatch.setattr(base, "trains_with_others", lambda: True)
    encoder = tiny.encoder([2, 4], backbone=backbone, layer_drop_rate=1.0).train()
    output = next(encoder.iter_exits(*features(64, 64)))
    output.hs.square().sum().backward()
    gradients = [parameter.grad for block in encoder.encoders[:2] for parameter in block.parameters()]
    assert gradients and all(gradient is not None and not gradient.any() for gradient in gradients)
    assert encoder.embed.conv[0].weight.grad.any()
    monkeypatch.undo()
    encoder.encoders[0].register_forward_hook(lambda *_: ran.append(0))
    next(encoder.iter_exits(*features(64, 64)))
    assert not ran
    next(encoder.eval().iter_exits(*features(64, 64)))
    assert ran


@pytest.mark.parametrize("backbone", ["conformer", "transformer"])
def test_a_rate_that_stock_passes_over_is_passed_over_with_a_word(backbone, caplog):
    conf = {"dropout_rate": 0.0, "positional_dropout_rate": 0.0, "attention_dropout_rate": 0.0}
    xs, ilens = features(64, 64)
    plain = tiny.encoder([2, 4], backbone=backbone, **conf).train()
    assert not caplog.messages
    written = tiny.encoder([2, 4], backbone=backbone, **conf, layer_drop_rate=0.9).train()
    assert "layer_drop_rate drops no layers here, nor in ESPnet's class" in caplog.text
    assert torch.equal(plain(xs, ilens)[0][0], written(xs, ilens)[0][0])


def test_a_kind_of_relative_positions_is_nothing_to_absolute_ones():
    assert not tiny.encoder([4], rel_pos_type="legacy", **ABSOLUTE).conditioned


def test_too_short_input_says_how_many_frames_are_needed():
    encoder = tiny.encoder([4])
    assert encoder.min_frames == 7
    assert next(encoder.iter_exits(*features(7))).olens.tolist() == [1]
    with pytest.raises(UserError, match="6 feature frames are too few.* 7"):
        encoder.start(*features(6))


def test_the_page_for_users_names_every_encoder_of_espnet():
    ours = {name for name, cls in encoder_choices.classes.items() if issubclass(cls, SegmentEncoder)}
    page = (Path(__file__).parents[2] / "egs/TEMPLATE/README.md").read_text(encoding="utf-8")
    assert set(encoder_choices.classes) - ours <= set(re.findall(r"`(\w+)`", page))


@pytest.mark.parametrize("input_layer", INPUT_LAYERS)
def test_frames_are_those_of_the_convolutions(input_layer):
    encoder = tiny.encoder([4], backbone="e_branchformer", input_layer=input_layer)
    for length in range(encoder.min_frames, encoder.min_frames + 3 * encoder.stride):
        with torch.no_grad():
            state = encoder.start(*features(length))
        assert state.hidden.size(1) == int(state.olens) == int(encoder.frames_of(torch.tensor(length)))
    assert encoder.frames_of(torch.tensor([0, encoder.min_frames - 1])).tolist() == [0, 0]


def test_older_positions_of_long_utterances_do_not_change_those_of_the_next():
    """ESPnet lets its table grow, and reads it from its end: after a long utterance every other one would have other positions."""
    encoders = [tiny.encoder([2, 4], rel_pos_type="legacy") for _ in range(2)]
    for part in (part for encoder in encoders for part in encoder.modules() if hasattr(part, "pe")):
        part.pe = part.pe[:, -20:]  # as if it had been made for 20 frames
    used, fresh = encoders

    def last(encoder, xs, ilens):
        with torch.no_grad():
            return list(encoder.iter_exits(xs, ilens))[-1].hs

    long, short = features(160)[0][0], features(70)[0][0]
    alone = [last(used, xs[None], torch.tensor([len(xs)]))[0] for xs in (long, short)]
    assert len(alone[0]) > 20 > len(alone[1])
    assert torch.equal(alone[1], last(fresh, short[None], torch.tensor([70]))[0])
    both = last(fresh, torch.nn.utils.rnn.pad_sequence([long, short], batch_first=True), torch.tensor([160, 70]))
    for row, expected in zip(both, alone, strict=True):
        torch.testing.assert_close(row[: len(expected)], expected, atol=1e-5, rtol=1e-4)


def test_older_positions_are_trained_as_stock_trains_them():
    encoder = tiny.encoder([2, 4], rel_pos_type="legacy").train()
    (final, below), _, _ = encoder(*features(90, 61))
    (final.sum() + below[0][1].sum()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in encoder.parameters())
