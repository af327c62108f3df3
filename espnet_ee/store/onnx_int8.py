"""Graphs with weights in 8 bits.

Dynamic quantisation costs texts in three ways, which were told apart on AN4's development set by the divergence of the exits'
distributions from those of 32 bits. On x86 without VNNI the product of signed weights adds pairs in 16 bits, which overflow (six
times the rest): so weights are unsigned here. Activations of few large values lose the others (the convolutions before and within
the blocks): their products are cheap, so they are computed in 32 bits, from 8-bit weights but for the smallest. The rounding of the
weights themselves is the least.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from espnet_ee.store.onnx_assembly import with_short_names
from espnet_ee.store.onnx_graphs import quiet, without_traces

_SHIFT = 3.0  # the mean of a norm's output that may become so many times its deviation
_FEW = 2048  # weights that stay in 32 bits, whose bytes do not count


def quantised(model: ModelProto, width: int) -> ModelProto:
    """The model with the weights of its matrix products in 8 bits, a scale for each output.

    Args:
        model: of a segment.
        width: of its hidden states, D. Activations are scaled to 8 bits, too, by the largest of them, in products of more than
            D x D weights.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    light = ModelProto()
    light.CopyFrom(model)
    _move_scales(light.graph)
    kept = _take_light_products(light.graph, width * width)
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
        return with_short_names(without_traces(onnx.load(target)))


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


def _take_light_products(graph: GraphProto, most: int) -> list[str]:
    """Names every node, and stores the weights of products that have ``most`` or fewer in 8 bits; returns the names of those."""
    kept = []
    weights = _own_weights(graph)
    nodes: list[NodeProto] = []
    for number, node in enumerate(graph.node):
        node.name = f"node{number}"
        tensor = weights.get(node.input[1]) if node.op_type == "MatMul" else None
        count = 0 if tensor is None else int(np.prod(tensor.dims))
        if tensor is not None and count <= most:
            kept.append(node.name)
            if count > _FEW:
                nodes += _restored(graph, tensor)
        nodes.append(node)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(copies)
    return kept


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
