"""Graphs with weights in 8 bits.

Dynamic quantisation costs texts in three ways, which were told apart on AN4's development set by the divergence of the exits'
distributions from those of 32 bits. On x86 without VNNI the product of signed weights adds pairs in 16 bits, which overflow (six
times the rest): so weights are unsigned here. Activations of few large values lose the others (the convolutions before and within
the blocks): their products are cheap, so they are computed in 32 bits, from 8-bit weights but for the smallest. The rounding of the
weights themselves is the least.

Narrow models lose most, and save least time: their first segment and their convolutions take all activations in 32 bits, and as
many of their small weights as the file's size leaves room for, those nearest before an exit, are of 16. What is no product's weight
(norms, biases, depthwise convolutions) is stored in 16 bits.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Iterable

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from espnet_ee.store.onnx_assembly import with_short_names
from espnet_ee.store.onnx_graphs import without_traces
from espnet_ee.store.onnx_modules import FirstSegment

_FEW = 2048  # weights that are stored in 16 bits, whose bytes do not count
_NARROW = 128  # hidden states up to which 8 bits lose most and save least
_SHARES = (0.275, 0.29)  # of the bytes in 32 bits that a narrow model's segment may have, and the first: together 0.28
_LEAST = 16  # numbers; of fewer a node costs more bytes than it saves
_READERS = {"LayerNormalization", "Conv", "Add", "MatMul"}  # of numbers that 16 bits serve; of positions, say, they do not
_MOST, _ZERO = 127, 128  # of 8 bits; what zero is where they have no sign


def quantised(model: ModelProto, width: int) -> ModelProto:
    """The model with the weights of its matrix products in 8 bits, a scale for each output.

    Args:
        model: of a segment.
        width: of its hidden states, D. Activations are scaled to 8 bits, too, by the largest of them, in products of more than
            D x D weights, in narrow models 2 D x D, above the first exit.
    """
    folded, narrow = ModelProto(), width <= _NARROW
    folded.CopyFrom(model)
    _fold_norms(folded.graph)
    is_first, light = model.graph.input[0].name == FirstSegment.inputs[0], width * width * (1 + narrow)
    in_32_bits = sys.maxsize if narrow and is_first else light
    sizes = {name: int(np.prod(tensor.dims)) for name, tensor in _products(folded.graph).items()}
    wide = {name for name, size in sizes.items() if size <= _FEW}
    small = _stored(folded, in_32_bits, wide)
    if narrow:
        room = _SHARES[is_first] * model.ByteSize() - small.ByteSize()
        for name, size in reversed(sizes.items()):
            if name not in wide and size <= min(light, room):
                wide.add(name)
                room -= size
        small = _stored(folded, in_32_bits, wide)
    return small


def _fold_norms(graph: GraphProto) -> None:
    """Puts scales and shifts of layer norms that products alone read into their weights and biases.

    What they give is then about as large in all dimensions, so 8 bits serve it better, and their scales are ones, which a file holds once.
    """
    weights, readers, products = _own_weights(graph), _readers(graph), _products(graph)

    def layer(product: NodeProto) -> list[TensorProto]:
        """The weights and the bias of a linear layer."""
        tensors = [products[product.input[1]]] if product.op_type == "MatMul" and product.input[1] in products else []
        sums = readers[product.output[0]] if tensors else []
        if len(sums) == 1 and sums[0].op_type == "Add":
            tensors += [weights[name] for name in sums[0].input if name in weights]
        return tensors

    for norm in graph.node:
        if norm.op_type != "LayerNormalization" or len(norm.input) != 3 or not weights.keys() >= set(norm.input[1:]):
            continue
        layers = [layer(reader) for reader in readers[norm.output[0]]]
        if not all(len(tensors) == 2 for tensors in layers):
            continue
        scale, shift = (numpy_helper.to_array(weights[name]) for name in norm.input[1:])
        for matrix, bias in layers:
            values = numpy_helper.to_array(matrix)
            bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + shift @ values, bias.name))
            matrix.CopyFrom(numpy_helper.from_array(values * scale[:, None], matrix.name))
        weights[norm.input[1]].CopyFrom(numpy_helper.from_array(np.ones_like(scale), norm.input[1]))
        del norm.input[2]


def _stored(model: ModelProto, light: int, wide: Collection[str]) -> ModelProto:
    """The model with its weights in fewer bits.

    Args:
        model: stays as it is.
        light: products of so many weights or fewer take activations in 32 bits.
        wide: names of weights that are stored in 16 bits; those of the other products are in 8.
    """
    small = ModelProto()
    small.CopyFrom(model)
    graph, nodes = small.graph, list[NodeProto]()
    weights = {name: tensor for name, tensor in _products(graph).items() if name not in wide}
    for node in graph.node:
        tensor = weights.get(node.input[1]) if node.op_type == "MatMul" else None
        nodes += [node] if tensor is None else _in_8_bits(graph, node, tensor, light)
    if weights:
        graph.initializer.append(numpy_helper.from_array(np.array(_ZERO, np.uint8), "zero"))
    _set_nodes(graph, nodes)
    _halve(graph)
    return with_short_names(without_traces(small))


def _set_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Gives a graph these nodes; its own among them are copied, for they go with the list that they are in."""
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(copies)


def _readers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """The nodes that read each value; an output is read by one that is none."""
    readers = {value.name: [NodeProto()] for value in graph.output}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def _own_weights(graph: GraphProto) -> dict[str, TensorProto]:
    """Weights by name, of those that one node alone reads."""
    readings = Counter(name for node in graph.node for name in node.input)
    return {tensor.name: tensor for tensor in graph.initializer if readings[tensor.name] == 1}


def _products(graph: GraphProto) -> dict[str, TensorProto]:
    """The weights (K, N) of matrix products, in their order."""
    weights = _own_weights(graph)
    names = [node.input[1] for node in graph.node if node.op_type == "MatMul"]
    return {name: weights[name] for name in names if name in weights and len(weights[name].dims) == 2}


def _in_8_bits(graph: GraphProto, node: NodeProto, tensor: TensorProto, light: int) -> list[NodeProto]:
    """Puts a product's weights (K, N) into 8 bits; the nodes that compute it.

    In a light one they restore the weights, which engines do once, when they load a graph. Not by ``DequantizeLinear``: ONNX Runtime
    would make it a product of 8 bits again.
    """
    name, values = tensor.name, numpy_helper.to_array(tensor)
    exact = np.maximum(np.abs(values).max(axis=0) / _MOST, np.finfo(np.float32).tiny)
    scale = exact.astype(np.float16)
    scale = np.where(scale < exact, np.nextafter(scale, np.float16(np.inf)), scale)
    whole, is_light = _rounded(values / scale), values.size <= light
    whole = whole.astype(np.int8) if is_light else (whole + _ZERO).astype(np.uint8)
    tensor.CopyFrom(numpy_helper.from_array(whole, f"{name}_8"))
    graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale_16"))
    scales = helper.make_node("Cast", [f"{name}_scale_16"], [f"{name}_scale"], to=TensorProto.FLOAT)
    if is_light:
        restored = helper.make_node("Cast", [f"{name}_8"], [f"{name}_whole"], to=TensorProto.FLOAT)
        return [scales, restored, helper.make_node("Mul", [f"{name}_whole", f"{name}_scale"], [name]), node]
    of_input = [f"{name}_input{part}" for part in ("", "_scale", "_zero")]
    return [
        scales,
        helper.make_node("DynamicQuantizeLinear", node.input[:1], of_input),
        helper.make_node("MatMulInteger", [of_input[0], f"{name}_8", of_input[2], "zero"], [f"{name}_sum"]),
        helper.make_node("Cast", [f"{name}_sum"], [f"{name}_whole"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [of_input[1], f"{name}_scale"], [f"{name}_scales"]),
        helper.make_node("Mul", [f"{name}_whole", f"{name}_scales"], node.output),
    ]


def _rounded(values: np.ndarray) -> np.ndarray:
    """Whole numbers near (K, N), some of them the second nearest, so that the errors of a column add up to half a one at most.

    What goes into a product is seldom of both signs alike, so errors of one sign would (SQuant, arXiv 2202.07471).
    """
    rounded = np.round(values)
    errors = values - rounded
    excess = np.round(errors.sum(axis=0))
    ranks = np.argsort(np.argsort(-errors * np.sign(excess), axis=0, kind="stable"), axis=0)
    return rounded + np.sign(excess) * (ranks < np.abs(excess))


def _halve(graph: GraphProto) -> None:
    """Stores numbers of 32 bits in 16, which engines widen once, when they load a graph."""
    readers, casts = _readers(graph), list[NodeProto]()
    for tensor in graph.initializer:
        name, values = tensor.name, numpy_helper.to_array(tensor)
        serves = {node.op_type for node in readers.get(name, [])} <= _READERS
        if tensor.data_type == TensorProto.FLOAT and values.size > _LEAST and serves:
            if np.abs(values).max() <= np.finfo(np.float16).max:
                tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_16"))
                casts.append(helper.make_node("Cast", [f"{name}_16"], [name], to=TensorProto.FLOAT))
    _set_nodes(graph, [*casts, *graph.node])
