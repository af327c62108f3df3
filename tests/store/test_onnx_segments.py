"""The graphs of a model's segments compute what torch computes, for every length and batch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from espnet_ee.encoder.base import SegmentEncoder
from espnet_ee.errors import UserError
from espnet_ee.store.checkpoint import load_model
from espnet_ee.store.onnx_description import describe_model
from espnet_ee.store.onnx_folder import OnnxExport, export_onnx
from espnet_ee.store.onnx_graphs import TOLERANCE, check_graph, difference, trace, trace_segment
from espnet_ee.store.onnx_modules import Normalisation, segments_of
from tests import tiny
from tests.store import onnx_models

BATCHES = ((16000,), (16000, 9000, 24000), (300, 40000), (24000, 100, 5000, 5001))


def test_graphs_equal_torch() -> None:
    model, graphs = onnx_models.traced()
    for lengths in BATCHES:
        onnx_models.assert_equal_to_torch(model, graphs, lengths)
    outputs = onnx_models.run_segments(graphs, onnx_models.features(model, onnx_models.speech((40000,))))
    assert any(len(set(output["label"][0])) > 1 for output in outputs)  # or little was compared
    assert not any(tensor.external_data for graph in graphs for tensor in graph.graph.initializer)
    assert not any(b"/espnet_ee" in graph.SerializeToString() for graph in graphs), "a path of this machine"
    nodes = [node for graph in graphs for node in graph.graph.node]
    assert not any(node.op_type == "IsNaN" for node in nodes), "a guard for a query that sees nothing"
    assert not any(node.name for node in nodes) and max(len(name) for node in nodes for name in node.output[:1]) < 16


def test_a_graph_that_computes_something_else_is_refused() -> None:
    model, graphs = onnx_models.traced()
    [segment, *_] = segments_of(model).values()
    check_graph(segment, graphs[0])
    other = onnx.ModelProto()
    other.CopyFrom(graphs[0])
    weights = max((tensor for tensor in other.graph.initializer if len(tensor.dims) == 2), key=lambda tensor: tensor.dims[0])
    weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights)[::-1].copy(), weights.name))
    with pytest.raises(UserError, match="no ONNX form.*differs"):
        check_graph(segment, other)


def test_rounding_of_large_numbers_is_no_difference() -> None:
    expected = torch.tensor([1.0, 5000.0])
    assert difference(expected + torch.tensor([0.0, 0.02]), expected) < TOLERANCE
    assert difference(expected[:1] + 0.02, expected[:1]) > TOLERANCE
    assert not difference(torch.tensor([math.nan]), expected[:1]) < TOLERANCE


def test_other_sizes_and_heads_are_equal_too() -> None:
    conf = {"subsampling": 6, "convolution_norm": "layer", "num_blocks": 1, "exit_layers": [1]}
    heads = {"ctc_weight": 1.0, "exit_heads": "convolution"}
    model = onnx_models.model(**onnx_models.settings(encoder_conf=conf, normalize=None, model_conf=heads))
    for lengths in BATCHES[1:3]:
        onnx_models.assert_equal_to_torch(model, [trace_segment(segments_of(model)[1])], lengths)


@pytest.mark.parametrize(
    ("encoder", "conf"),
    [
        # The exit lies among the blocks at half rate: what comes out there is of both rates.
        ("early_exit_fast_conformer", {"subsampling": 4, "half_rate": [1, 2]}),
        ("early_exit_splitformer", {"num_blocks": 1, "exit_layers": [1]}),
        # Able to stream: another padding before the subsampling.
        ("early_exit_fast_conformer", {"num_blocks": 1, "exit_layers": [1], "chunk_range": [2, 4]}),
    ],
)
def test_other_forms_are_equal_too(encoder: str, conf: dict[str, Any]) -> None:
    model = onnx_models.model(**{**onnx_models.settings(encoder_conf=conf, normalize=None), "encoder": encoder})
    graphs = [trace_segment(segment) for segment in segments_of(model).values()]
    for lengths in BATCHES[1:3]:
        onnx_models.assert_equal_to_torch(model, graphs, lengths)


@pytest.mark.parametrize("means", [True, False])
@pytest.mark.parametrize("variances", [True, False])
@pytest.mark.parametrize("kind", ["global_mvn", "utterance_mvn"])
def test_normalisation_is_that_of_the_training(tmp_path, kind: str, means: bool, variances: bool) -> None:
    np.savez(tmp_path / "stats.npz", count=9, sum=np.arange(80.0), sum_square=np.arange(80.0) ** 2 + 9)
    conf = {"norm_means": means, "norm_vars": variances}
    conf |= {"stats_file": str(tmp_path / "stats.npz")} if kind == "global_mvn" else {}
    stock = tiny.model(normalize=kind, normalize_conf=conf).normalize
    xs, ilens = torch.randn(3, 20, 80), torch.tensor([20, 11, 1])
    normalised = Normalisation(stock)(xs, ilens)
    for row, length in enumerate(ilens.tolist()):
        alone, _ = stock(xs[row : row + 1, :length].clone(), ilens[row : row + 1])
        torch.testing.assert_close(normalised[row, :length], alone[0])
        assert not normalised[row, length:].any()


@pytest.mark.parametrize("backbone", tiny.BACKBONES)
def test_espnets_encoders_are_equal_too(backbone: str) -> None:
    conf = {**tiny.BACKBONES[backbone][1], "num_blocks": 1, "exit_layers": [1]}
    encoder = {"encoder": f"early_exit_{backbone}", "encoder_conf": conf}
    model = onnx_models.model(frontend="kaldi_fbank", frontend_conf={}, **encoder)
    graphs = [trace_segment(segments_of(model)[1])]
    for lengths in BATCHES[1:3]:
        onnx_models.assert_equal_to_torch(model, graphs, lengths)


@pytest.mark.parametrize("positions", ["rel_pos", "abs_pos", "scaled_abs_pos"])
@pytest.mark.parametrize("input_layer", ["conv2d", "conv2d6", "linear", "conv1d3"])
def test_espnets_positions_come_from_a_formula(positions: str, input_layer: str) -> None:
    attention = "rel_selfattn" if positions == "rel_pos" else "selfattn"
    changes = {"pos_enc_layer_type": positions, "attention_layer_type": attention, "input_layer": input_layer}
    encoder = tiny.encoder([1, 4], backbone="e_branchformer", **changes)
    for parameter in (part.alpha for part in encoder.modules() if hasattr(part, "alpha")):
        torch.nn.init.constant_(parameter, 0.5)
    xs, ilens = torch.randn(2, 70, 80), torch.tensor([70, 41])
    state = encoder.start(xs, ilens)
    hidden = encoder.traced_embed(xs, ilens)
    torch.testing.assert_close(hidden, state.hidden)
    carry = encoder.traced_carry(hidden, state.olens)
    assert torch.equal(carry.masks, state.carry.masks)
    torch.testing.assert_close(carry.positions, state.carry.positions)


def test_a_linear_layer_before_the_encoder_is_in_the_graph() -> None:
    linear = {"preencoder": "linear", "preencoder_conf": {"input_size": 80, "output_size": 20}}
    model = onnx_models.model(**onnx_models.settings(encoder_conf={"num_blocks": 1, "exit_layers": [1]}, **linear))
    graphs = [trace_segment(segments_of(model)[1])]
    for lengths in BATCHES[1:3]:
        onnx_models.assert_equal_to_torch(model, graphs, lengths)
    assert describe_model(model, 16000)["features"]["n_mels"] == 80


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rel_pos_type": "legacy"}, "rel_pos_type: legacy: .*no ONNX form"),
        ({"interctc_use_conditioning": True}, "interctc_use_conditioning: .*no ONNX form"),
    ],
)
def test_encoders_that_read_more_than_hidden_states_are_refused(tmp_path, changes: dict[str, Any], message: str) -> None:
    conf = {**tiny.CONFORMER, "exit_layers": [1, 4], **changes}
    made = tiny.model(frontend="kaldi_fbank", frontend_conf={}, encoder_conf=conf)
    with pytest.raises(UserError, match=message):
        export_onnx(made, 16000, tmp_path, OnnxExport({}))
    assert not list(tmp_path.iterdir())


def test_a_peak_of_the_training_is_no_part_of_a_graph(tmp_path) -> None:
    made = load_model(*tiny.save(tmp_path, tiny.model(), speech_volume_normalize=0.9))
    with pytest.raises(UserError, match="speech_volume_normalize: an exported model takes audio as it is"):
        export_onnx(made, 16000, tmp_path / "out", OnnxExport({}))


def test_what_has_no_form_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lstm = tiny.model(**onnx_models.settings(model_conf={"ctc_weight": 1.0, "exit_heads": "lstm"}))
    with pytest.raises(UserError, match="kind lstm has no ONNX form"):
        segments_of(lstm)
    with pytest.raises(UserError, match="EarlyExitFastConformerEncoder has no ONNX form"):
        SegmentEncoder.traced_embed(lstm.encoder, torch.zeros(1, 20, 80), torch.tensor([20]))

    for cause, said in ((NotImplementedError("no pack\nmuch more"), "no pack"), (AssertionError(), "AssertionError")):

        def refuse(*_: object, cause: Exception = cause, **__: object) -> None:
            raise torch.onnx.OnnxExporterError("long story") from cause

        monkeypatch.setattr(torch.onnx, "export", refuse)
        with pytest.raises(UserError, match=rf"no ONNX form: torch cannot trace it \({said}\)$"):
            trace(torch.nn.Identity(), [torch.ones(2, 3)], ["xs"], ["ys"])
