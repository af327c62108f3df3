"""Graphs with weights in 8 bits.

Dynamic quantisation costs texts in three ways, which were told apart on AN4's development set by the divergence of the exits'
distributions from those of 32 bits. On x86 without VNNI the product of signed weights adds pairs in 16 bits, which overflow (six
times the rest): so weights are unsigned here. Activations of few large values lose the others (the convolutions before and within
the blocks): their products are cheap, so they are computed in 32 bits, from 8-bit weights but for the smallest. The rounding of the
weights themselves is the least.

The first exit says its tokens with the least certainty, so it loses most texts: of narrow models, whose time is elsewhere, the first
segment takes all activations in 32 bits, and its small weights are of 16. What is no product's weight (norms, biases, depthwise
convolutions) is stored in 16 bits.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from espnet_ee.store.onnx_assembly import with_short_names
from espnet_ee.store.onnx_graphs import quiet, without_traces
from espnet_ee.store.onnx_modules import FirstSegment

_SHIFT = 3.0  # the mean of a norm's output that may become so many times its deviation
_FEW = 2048  # weights that are stored in 16 bits, whose bytes do not count
_NARROW = 128  # hidden states up to which 8 bits lose most and save least
_LEAST = 16  # numbers; of fewer a node costs more bytes than it saves
_READERS = {"LayerNormalization", "Conv", "Add", "MatMul"}  # of numbers that 16 bits serve; of positions, say, they do not


def quantised(model: ModelProto, width: int) -> ModelProto:
    """The model with the weights of its matrix products in 8 bits, a scale for each output.

    Args:
        model: of a segment.
        width: of its hidden states, D. Activations are scaled to 8 bits, too, by the largest of them, in products of more than
            D x D weights.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    light, square = ModelProto(), width * width
    light.CopyFrom(model)
    _move_scales(light.graph)
    exact = width <= _NARROW and model.graph.input[0].name == FirstSegment.inputs[0]
    kept = _take_light_products(light.graph, *((sys.maxsize, 2 * square) if exact else (square, _FEW)))
    with tempfile.TemporaryDirectory() as folder, quiet():
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(light, source)
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QUInt8,
            nodes_to_exclude=kept,
            extra_options={"EnableSubgraph": True, "MatMulConstBOnly": True},
        )
        small = onnx.load(target)
    _halve(small.graph)
    return with_short_names(without_traces(small))


def _move_scales(graph: GraphProto) -> None:
    """Puts the scales of a layer norm that only products read into their weights: all its outputs are then about as large.

    So 8 bits serve them better, and the norms have the same scales, of ones, which a file holds once.
    """
    weights = _own_weights(graph)
    outputs = {value.name for value in graph.output}
    for norm in graph.node:
        readers = [node for node in graph.node if norm.output[0] in node.input]
        has_both = norm.op_type == "LayerNormalization" and len(norm.input) == 3 and weights.keys() >= set(norm.input[1:])
        if not has_both or norm.output[0] in outputs:
            continue
        if not all(node.op_type == "MatMul" and node.input[1] in weights for node in readers):
            continue
        scale, shift = (numpy_helper.to_array(weights[name]) for name in norm.input[1:])
        least = np.maximum(np.abs(shift) / _SHIFT, np.finfo(np.float32).tiny)
        moved = np.where(np.abs(scale) < least, least, scale).astype(np.float32)
        for name, values in zip(norm.input[1:], (scale / moved, shift / moved), strict=True):
            weights[name].CopyFrom(numpy_helper.from_array(values, name))
        for name in (node.input[1] for node in readers):
            weights[name].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights[name]) * moved[:, None], name))


def _take_light_products(graph: GraphProto, most: int, few: int) -> list[str]:
    """Names every node, and stores the weights of products that have ``most`` or fewer, but more than ``few``, in 8 bits.

    Returns:
        The names of those of ``most`` or fewer.
    """
    kept = []
    weights = _own_weights(graph)
    nodes: list[NodeProto] = []
    for number, node in enumerate(graph.node):
        node.name = f"node{number}"
        tensor = weights.get(node.input[1]) if node.op_type == "MatMul" else None
        count = 0 if tensor is None else int(np.prod(tensor.dims))
        if tensor is not None and count <= most:
            kept.append(node.name)
            if count > few:
                nodes += _restored(graph, tensor)
        nodes.append(node)
    _set_nodes(graph, nodes)
    return kept


def _set_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Gives a graph these nodes; its own among them are copied, for they go with the list that they are in."""
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(copies)


def _own_weights(graph: GraphProto) -> dict[str, TensorProto]:
    """Weights by name, of those that one node alone reads."""
    readings = Counter(name for node in graph.node for name in node.input)
    return {tensor.name: tensor for tensor in graph.initializer if readings[tensor.name] == 1}


def _restored(graph: GraphProto, tensor: TensorProto) -> list[NodeProto]:
    """Puts weights (K, N) into 8 bits; what restores them, which engines do once, when they load a graph.

    Not by ``DequantizeLinear``: ONNX Runtime would make it a product of 8 bits again.
    """
    name, values = tensor.name, numpy_helper.to_array(tensor)
    scale = np.maximum(np.abs(values).max(axis=0), np.finfo(np.float32).tiny) / 127
    tensor.CopyFrom(numpy_helper.from_array(np.round(values / scale).astype(np.int8), f"{name}_8"))
    graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}_scale"))
    return [
        helper.make_node("Cast", [f"{name}_8"], [f"{name}_whole"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}_whole", f"{name}_scale"], [name]),
    ]


def _halve(graph: GraphProto) -> None:
    """Stores numbers of 32 bits in 16, which engines widen once, when they load a graph; zero points as bytes."""
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    casts = []
    for tensor in graph.initializer:
        name, values = tensor.name, numpy_helper.to_array(tensor)
        if tensor.data_type == TensorProto.UINT8:
            tensor.CopyFrom(numpy_helper.from_array(values, name))
        elif tensor.data_type == TensorProto.FLOAT and values.size > _LEAST and readers.get(name, {""}) <= _READERS:
            if np.abs(values).max() <= np.finfo(np.float16).max:
                tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_16"))
                casts.append(helper.make_node("Cast", [f"{name}_16"], [name], to=TensorProto.FLOAT))
    _set_nodes(graph, [*casts, *graph.node])
