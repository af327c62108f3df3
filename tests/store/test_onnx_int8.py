"""Graphs of 8 bits: what is quantised, and that it stays near."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper

from espnet_ee.store import onnx_int8
from espnet_ee.store.onnx_graphs import trace_segment
from espnet_ee.store.onnx_int8 import _fold_norms, _rounded, quantised
from espnet_ee.store.onnx_modules import segments_of
from tests.store import onnx_models

WIDTH = 48


@pytest.fixture(scope="module")
def traced() -> tuple[torch.nn.Module, onnx.ModelProto]:
    """A segment of one block whose norms scale each dimension in another way, one of them to nothing."""
    conf = {"output_size": WIDTH, "linear_units": 100, "num_blocks": 1, "exit_layers": [1]}
    model = onnx_models.model(**onnx_models.settings(encoder_conf=conf, normalize="utterance_mvn"))
    for part in model.encoder.modules():
        if isinstance(part, torch.nn.LayerNorm):
            torch.nn.init.uniform_(part.weight, 0.5, 2.0)
            torch.nn.init.normal_(part.bias, std=0.3)
            with torch.no_grad():
                part.weight[3] = 0.0
    return model, trace_segment(segments_of(model)[1])


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes no model for a narrow one."""
    monkeypatch.setattr(onnx_int8, "_NARROW", 0)


def product(weights: np.ndarray) -> onnx.ModelProto:
    """A graph of one product."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", "T", size])
        for name, size in zip(("hidden", "y"), weights.shape, strict=True)
    ]
    nodes = [helper.make_node("MatMul", ["hidden", "w"], ["y"])]
    graph = helper.make_graph(nodes, "product", values[:1], values[1:], [numpy_helper.from_array(weights, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(("narrow", "most"), [(0, 0.02), (WIDTH, 0.004)])
def test_int8_is_near(
    traced: tuple[torch.nn.Module, onnx.ModelProto], monkeypatch: pytest.MonkeyPatch, narrow: int, most: float
) -> None:
    monkeypatch.setattr(onnx_int8, "_NARROW", narrow)
    model, graph = traced
    feed = onnx_models.features(model, onnx_models.speech((16000,)))
    whole, near = (onnx_models.run(each, feed) for each in (graph, quantised(graph, WIDTH)))
    assert 0 < np.abs(whole["hidden_out"] - near["hidden_out"]).mean() < most * np.abs(whole["hidden_out"]).mean()


def test_the_first_segment_and_the_convolutions_of_a_narrow_model_take_activations_in_32_bits(
    traced: tuple[torch.nn.Module, onnx.ModelProto],
) -> None:
    _, graph = traced
    small, other = quantised(graph, WIDTH), onnx.ModelProto()
    other.CopyFrom(graph)
    other.graph.input[0].name = "hidden"
    for node in other.graph.node:
        node.input[:] = ["hidden" if name == "x" else name for name in node.input]
    kinds, others = (Counter(node.op_type for node in each.graph.node) for each in (small, quantised(other, WIDTH)))
    assert not kinds["MatMulInteger"] and others["MatMulInteger"] == 5
    assert all(
        tensor.data_type in (TensorProto.INT8, TensorProto.FLOAT16)
        for tensor in small.graph.initializer
        if len(tensor.dims) == 2
    )


def test_what_is_no_products_weight_is_stored_in_16_bits_but_what_they_do_not_serve() -> None:
    model = product(np.full((64, 30), 0.1, np.float32))
    added = {"bias": np.full(30, 0.1), "large": np.full(30, 1e5), "few": np.full(1, 0.1), "rates": np.full(30, 1e-3)}
    model.graph.initializer.extend(numpy_helper.from_array(values.astype(np.float32), name) for name, values in added.items())
    model.graph.node.extend(
        helper.make_node("Mul" if name == "rates" else "Add", [name, last], [f"y_{name}"])
        for name, last in zip(added, ("y", *(f"y_{name}" for name in added)), strict=False)
    )
    model.graph.output[0].name = "y_rates"
    small = quantised(model, 64)
    assert [tensor.data_type for tensor in small.graph.initializer if list(tensor.dims) == [30]].count(TensorProto.FLOAT16) == 1
    outputs = onnx_models.run(small, {"hidden": np.ones((1, 5, 64), np.float32)})
    np.testing.assert_allclose(outputs["y_rates"], (6.4 + 1e5 + 0.2) * 1e-3, rtol=1e-3)


@pytest.mark.usefixtures("wide")
def test_all_but_the_smallest_weights_are_in_8_bits_and_wide_products_computed_so(
    traced: tuple[torch.nn.Module, onnx.ModelProto],
) -> None:
    _, graph = traced
    before = graph.SerializeToString(deterministic=True)
    small = quantised(graph, WIDTH)
    assert graph.SerializeToString(deterministic=True) == before
    kinds = Counter(node.op_type for node in small.graph.node)
    # Subsampling's output, four of feed-forward modules, and two that make more than they take (attention, convolution).
    assert kinds["MatMulInteger"] == 7 and "ConvInteger" not in kinds
    shapes = {tensor.data_type: set[tuple[int, ...]]() for tensor in small.graph.initializer}
    for tensor in small.graph.initializer:
        shapes[tensor.data_type].add(tuple(tensor.dims))
    assert {(WIDTH, 100), (100, WIDTH), (WIDTH, 3 * WIDTH)} <= shapes[TensorProto.UINT8]
    assert shapes[TensorProto.INT8] == {(WIDTH, WIDTH)}
    assert all(len(shape) != 2 or np.prod(shape) <= 2048 for shape in shapes[TensorProto.FLOAT16])
    assert all(len(shape) < 2 for shape in shapes[TensorProto.FLOAT])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_small_weights_are_of_16_bits_as_size_leaves_room(
    traced: tuple[torch.nn.Module, onnx.ModelProto], monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(onnx_int8, "_SHARES", (share, share))
    shapes = [tuple(tensor.dims) for tensor in halves(quantised(traced[1], WIDTH)) if len(tensor.dims) == 2]
    # Subsampling's output, attention, the convolution's two; feed-forward modules' are larger.
    small = [(WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, 2 * WIDTH), (72, WIDTH)]
    assert sorted(shape for shape in shapes if np.prod(shape) > 2048) == (small if share else [])


def test_of_small_weights_those_nearest_before_the_exit_are_of_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = product(np.ones((64, 64), np.float32))
    model.graph.initializer.append(numpy_helper.from_array(np.full((64, 64), 2, np.float32), "last"))
    model.graph.node.append(helper.make_node("MatMul", ["y", "last"], ["z"]))
    model.graph.output[0].name = "z"
    monkeypatch.setattr(onnx_int8, "_SHARES", (0.5, 0.0))
    [last] = halves(quantised(model, 64))
    assert list(last.dims) == [64, 64] and (numpy_helper.to_array(last) == 2).all()


def halves(model: onnx.ModelProto) -> list[TensorProto]:
    """Weights of 16 bits, but for scales."""
    return [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT16 and len(tensor.dims) > 1]


def test_scales_and_shifts_of_a_norm_go_into_the_layers_behind_it(traced: tuple[torch.nn.Module, onnx.ModelProto]) -> None:
    model, graph = traced
    moved = onnx.ModelProto()
    moved.CopyFrom(graph)
    _fold_norms(moved.graph)
    feed = onnx_models.features(model, onnx_models.speech((16000,)))
    whole, same = (onnx_models.run(each, feed) for each in (graph, moved))
    for name, values in whole.items():
        np.testing.assert_allclose(same[name], values, atol=2e-4)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in moved.graph.initializer}
    norms = [node for node in moved.graph.node if node.op_type == "LayerNormalization"]
    assert [len(norm.input) for norm in norms] == [2] * 4 + [3]  # the last is the next segment's, too
    assert [bool((weights[norm.input[1]] == 1.0).all()) for norm in norms] == [True] * 4 + [False]


@given(arrays(np.float32, (40, 6), elements=st.floats(-127, 127, width=32)))
def test_errors_of_rounding_add_up_to_nothing(values: np.ndarray) -> None:
    rounded = _rounded(values)
    assert (rounded == np.round(rounded)).all() and (np.abs(rounded) <= 127).all()
    assert (np.abs(rounded - values) < 1).all()
    assert (np.abs((rounded - values).sum(axis=0)) < 0.51).all()


def test_sums_of_large_products_do_not_overflow() -> None:
    rows = np.ones((1, 5, 256), np.float32)
    outputs = onnx_models.run(quantised(product(np.ones((256, 30), np.float32)), 1), {"hidden": rows})
    np.testing.assert_allclose(outputs["y"], 256.0, rtol=1e-3)


def test_a_weight_that_two_read_stays_as_it_is() -> None:
    model = product(np.ones((64, 64), np.float32))
    model.graph.node.append(helper.make_node("MatMul", ["y", "w"], ["z"]))
    model.graph.output[0].name = "z"
    outputs = onnx_models.run(quantised(model, 64), {"hidden": np.ones((1, 5, 64), np.float32)})
    np.testing.assert_allclose(outputs["z"], 64.0**2, rtol=1e-6)


def test_a_column_of_zeros_stays_one() -> None:
    weights = np.random.default_rng(0).standard_normal((64, 40)).astype(np.float32)
    weights[:, 7] = 0.0
    rows = np.random.default_rng(1).standard_normal((1, 9, 64)).astype(np.float32)
    for width in (1, 64):
        outputs = onnx_models.run(quantised(product(weights), width), {"hidden": rows})
        assert not outputs["y"][..., 7].any()
        np.testing.assert_allclose(outputs["y"], rows @ weights, atol=0.3)
