"""The analytic MACs equal what torch counts."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests import tiny


@pytest.mark.parametrize(
    ("backbone", "changes"),
    [
        ("conformer", {}),
        ("conformer", {"macaron_style": False}),
        ("conformer", {"use_cnn_module": False}),
        ("conformer", {"concat_after": True}),
        ("conformer", {"input_layer": "linear"}),
        ("conformer", {"input_layer": "conv2d1"}),
        ("conformer", {"input_layer": "conv2d2"}),
        ("conformer", {"input_layer": "conv2d6"}),
        ("conformer", {"input_layer": "conv2d8"}),
        ("conformer", {"pos_enc_layer_type": "abs_pos", "selfattention_layer_type": "selfattn"}),
        ("transformer", {}),
        ("transformer", {"input_layer": "linear", "concat_after": True}),
        ("branchformer", {}),
        ("branchformer", {"merge_method": "fixed_ave", "use_linear_after_conv": True}),
        ("branchformer", {"merge_method": "learned_ave"}),
        ("branchformer", {"pos_enc_layer_type": "abs_pos", "attention_layer_type": "selfattn"}),
        ("e_branchformer", {}),
        ("e_branchformer", {"use_ffn": False, "macaron_ffn": False, "merge_conv_kernel": 31}),
        ("e_branchformer", {"macaron_ffn": False, "use_linear_after_conv": True}),
    ],
    ids=str,
)
@pytest.mark.parametrize("frames", [15, 83])
def test_segments(backbone, changes, frames):
    encoder = tiny.encoder([1, 3, 4], backbone=backbone, **changes)
    expected = encoder.shape().segment_macs(frames, encoder.exit_layers)
    torch.backends.mha.set_fastpath_enabled(False)
    for exits, macs in enumerate(expected, 1):
        # DESIGN: the counter sees nothing inside fused attention.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            passing = encoder.iter_exits(torch.randn(1, frames, 80), torch.tensor([frames]))
            for _ in range(exits):
                next(passing)
        assert counter.get_total_flops() == 2 * macs


def test_head():
    model = tiny.model()
    hs = torch.randn(1, 20, 16)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.log_probs(1, hs)
    evidence = 2 * 20 * len(tiny.TOKENS)
    assert counter.get_total_flops() == 2 * (model.encoder.shape().head_macs(20, len(tiny.TOKENS)) - evidence)
