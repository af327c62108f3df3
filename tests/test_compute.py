"""The table of MACs says what torch counts, at every length."""

import threading
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from espnet_ee.compute import MacTable, Parabola
from espnet_ee.encoder.counting import count_encoder
from espnet_ee.model.heads import mac_table
from tests import tiny

ABSOLUTE = {"pos_enc_layer_type": "abs_pos", "selfattention_layer_type": "selfattn"}
# Backbone, settings, and the MACs that formulas derived from the shapes by hand gave: up to exits 4, 1, 3, 4, 4 for 15, 82,
# 83, 1252 and 1253 feature frames.
GOLDEN = [
    ("conformer", {}, (233744, 1246432, 1515248, 48516848, 48522464)),
    ("conformer", {"macaron_style": False}, (224528, 1231840, 1469168, 47558384, 47564000)),
    ("conformer", {"use_cnn_module": False}, (223184, 1229712, 1462448, 47418608, 47424224)),
    ("conformer", {"concat_after": True}, (239888, 1256160, 1545968, 49155824, 49161440)),
    ("conformer", {"input_layer": "linear"}, (311936, 857792, 2408224, 422594048, 423252352)),
    ("conformer", {"input_layer": "conv2d1"}, (2489312, 16770368, 18410368, 675219392, 676080160)),
    ("conformer", {"input_layer": "conv2d2"}, (597008, 4065728, 4676112, 171689072, 172124384)),
    ("conformer", {"input_layer": "conv2d6"}, (134160, 1239296, 1453776, 34270832, 34478304)),
    ("conformer", {"input_layer": "conv2d8"}, (208656, 1304096, 1434192, 29329008, 29334624)),
    ("conformer", ABSOLUTE, (227664, 1225712, 1447856, 35438832, 35444448)),
    ("transformer", {}, (207888, 1194400, 1348976, 33382128, 33387744)),
    ("transformer", {"input_layer": "linear", "concat_after": True}, (186240, 509056, 1341280, 213781504, 214112640)),
    ("branchformer", {}, (218816, 1222796, 1440608, 46964336, 46969952)),
    (
        "branchformer",
        {"merge_method": "fixed_ave", "use_linear_after_conv": True},
        (217472, 1220668, 1433888, 46824560, 46830176),
    ),
    ("branchformer", {"merge_method": "learned_ave"}, (216640, 1219180, 1429184, 46724848, 46730464)),
    (
        "branchformer",
        {"pos_enc_layer_type": "abs_pos", "attention_layer_type": "selfattn"},
        (212736, 1202076, 1373216, 33886320, 33891936),
    ),
    ("e_branchformer", {}, (238400, 1253804, 1538528, 49001072, 49006688)),
    (
        "e_branchformer",
        {"use_ffn": False, "macaron_ffn": False, "merge_conv_kernel": 31},
        (230720, 1241644, 1500128, 48202352, 48207968),
    ),
    ("e_branchformer", {"macaron_ffn": False, "use_linear_after_conv": True}, (230912, 1241948, 1501088, 48222320, 48227936)),
    ("multiconv_conformer", {}, (223040, 1229484, 1461728, 47403632, 47409248)),
    ("multiconv_conformer", {"multicgmlp_type": "sum"}, (222320, 1228344, 1458128, 47328752, 47334368)),
    (
        "multiconv_conformer",
        {"multicgmlp_type": "weighted_sum", "macaron_style": True},
        (232112, 1243848, 1507088, 48347120, 48352736),
    ),
    (
        "multiconv_conformer",
        {"multicgmlp_type": "concat", "use_linear_after_conv": True},
        (224048, 1231080, 1466768, 47508464, 47514080),
    ),
    (
        "multiconv_conformer",
        {"use_cnn_module": False, "input_layer": "conv2d6"},
        (127568, 1219520, 1389504, 32906288, 33107168),
    ),
    ("multiconv_conformer", {**ABSOLUTE, "input_layer": "linear"}, (200880, 529064, 1402036, 215003456, 215335568)),
]
VARIANTS = [(backbone, changes) for backbone, changes, _ in GOLDEN]


@pytest.mark.parametrize(("backbone", "changes", "expected"), GOLDEN, ids=str)
def test_the_counts_are_those_of_the_formulas(backbone, changes, expected):
    table = tiny.encoder([1, 3, 4], backbone=backbone, **changes).macs()
    points = zip((4, 1, 3, 4, 4), (15, 82, 83, 1252, 1253), strict=True)
    assert tuple(table.encoder_macs(layer, frames) for layer, frames in points) == expected


@pytest.mark.parametrize(("backbone", "changes"), VARIANTS, ids=str)
@given(frames=st.integers(1, 400))
@settings(max_examples=3, deadline=None)
def test_the_table_is_a_direct_count_at_any_length(backbone, changes, frames):
    encoder = encoder_of(backbone, tuple(changes.items()))
    table = encoder.macs()
    if frames < encoder.min_frames:
        assert table.encoder_frames(frames) == table.encoder_macs(4, frames) == 0
        return
    xs, ilens = torch.randn(1, frames, 80), torch.tensor([frames])
    # DESIGN: the counter sees nothing inside fused attention.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for output in encoder.iter_exits(xs, ilens):
            assert counter.get_total_flops() == 2 * table.encoder_macs(output.layer, frames)
            assert table.encoder_frames(frames) == output.hs.size(1) == int(output.olens)


_ENCODERS: dict = {}


def encoder_of(backbone: str, changes: tuple) -> torch.nn.Module:
    """Made once for all examples of a variant."""
    if (backbone, changes) not in _ENCODERS:
        _ENCODERS[backbone, changes] = tiny.encoder([1, 3, 4], backbone=backbone, **dict(changes))
    return _ENCODERS[backbone, changes]


@given(counts=st.tuples(*[st.integers(0, 10**12)] * 3), frames=st.integers(0, 10**5))
def test_a_parabola_is_exact(counts, frames):
    at_one, step, growth = counts
    assert Parabola(*counts)(frames) == (sum(step + k * growth for k in range(frames - 1)) + at_one if frames else 0)


def test_a_table_is_plain_numbers():
    table = MacTable(7, 4, (10, 12, 14, 16), 20, {1: (Parabola(1, 2),), 4: (Parabola(3, 4, 5), Parabola(7, 8))})
    assert [table.encoder_frames(length) for length in (0, 6, 7, 10, 11, 14, 15)] == [0, 0, 1, 1, 2, 2, 3]
    assert [table.encoder_macs(1, length) for length in (6, 7, 8, 10, 11, 16)] == [0, 11, 13, 17, 33, 57]
    assert table.encoder_macs(4, 16) == 52 + 3 + 4
    assert [table.block_macs(4, frames) for frames in range(7)] == [0, 3, 7, 7, 15, 16, 23]


@pytest.mark.parametrize("heads", ["separate", "shared"])
def test_heads_are_counted_with_their_evidence(heads):
    model = tiny.model(model_conf={"ctc_weight": 1.0, "exit_heads": heads})
    table = mac_table(model)
    assert {layer: table.head_macs(layer, 20) for layer in (1, 2, 4)} == dict.fromkeys(
        (1, 2, 4), 20 * len(tiny.TOKENS) * (16 + 2)
    )
    assert table.encoder_macs(2, 83) == model.encoder.macs().encoder_macs(2, 83) > 0


def test_counting_leaves_no_trace_and_is_done_once(monkeypatch):
    """The same seed gives the same model whether something was counted in between or not; a training mode stays on."""
    encoder = tiny.encoder([2, 4]).train()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    ran, lock = [], threading.Lock()  # what a hook holds need not be copyable
    encoder.encoders[0].register_forward_hook(lambda *_, lock=lock: ran.append(lock))
    encoder.encoders[1].register_forward_pre_hook(partial(lambda lock, *_: ran.append(lock), lock))
    torch.manual_seed(7)
    table = encoder.macs()
    assert not ran
    after = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(1), after) and encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    with torch.inference_mode():
        assert count_encoder(encoder) == table
    monkeypatch.setattr("espnet_ee.encoder.base.count_encoder", None)
    assert encoder.macs() is table
