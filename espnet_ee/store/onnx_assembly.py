"""ONNX graphs put together into one: every value under a name of its own, every weight once, nothing that nobody reads."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

Names = dict[str, str]


@functools.cache
def piece(text: str) -> ModelProto:
    """A small graph from ONNX's own notation (``name (inputs) => (outputs) {nodes}``)."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]> {text}')
    for node in [node for node in model.graph.node if node.op_type == "Constant"]:  # as a weight it lies in the file once
        value = np.array(helper.get_attribute_value(node.attribute[0]))
        value = value.astype(np.float32) if value.dtype == np.float64 else value
        model.graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        model.graph.node.remove(node)
    return model


class Assembly:
    """A graph that grows by placing others in it, also within the branches of an ``If``.

    Weights lie in the outermost graph, where every branch sees them; equal ones are one.
    """

    def __init__(self) -> None:
        self.initializers: dict[str, TensorProto] = {}
        self._names_of_content: dict[bytes, str] = {}
        self._opsets: dict[str, int] = {}
        self._nodes: list[NodeProto] = []
        self._placed = self._ir_version = 0

    def constant(self, name: str, tensor: TensorProto) -> str:
        """Adds a weight under this name; it stays a weight of its own. Returns the name."""
        self.initializers[name] = helper.make_tensor(name, 1, [], [0.0])
        self.initializers[name].CopyFrom(tensor)
        self.initializers[name].name = name
        return name

    def place(self, model: ModelProto, inputs: Mapping[str, str]) -> Names:
        """Adds the nodes of a graph without branches, whose inputs are these values; returns the names here of all its values."""
        self._placed += 1
        self._ir_version = max(self._ir_version, model.ir_version)
        for opset in model.opset_import:
            self._opsets[opset.domain] = max(opset.version, self._opsets.get(opset.domain, 0))
        names: Names = {"": "", **inputs}
        for tensor in model.graph.initializer:
            names[tensor.name] = self._shared(tensor)
        for node in model.graph.node:
            for name in node.output:
                names.setdefault(name, f"{self._placed}/{name}")
        for node in model.graph.node:
            added = NodeProto()
            added.CopyFrom(node)
            added.input[:] = [names[name] for name in node.input]
            added.output[:] = [names[name] for name in node.output]
            self._nodes.append(added)
        return names

    def _shared(self, tensor: TensorProto) -> str:
        content = TensorProto()
        content.CopyFrom(tensor)
        content.ClearField("name")
        key = content.SerializeToString(deterministic=True)
        if key not in self._names_of_content:
            self._names_of_content[key] = self.constant(f"{self._placed}/{tensor.name}", tensor)
        return self._names_of_content[key]

    def node(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **branches: GraphProto) -> None:
        """Adds one node."""
        self._nodes.append(helper.make_node(kind, inputs, outputs, **branches))

    @contextmanager
    def branch(self) -> Iterator[list[NodeProto]]:
        """What is placed inside goes to the list that is given."""
        outer, self._nodes = self._nodes, []
        try:
            yield self._nodes
        finally:
            self._nodes = outer

    def finish(
        self, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto], keep: Collection[str] = ()
    ) -> ModelProto:
        """The whole, without nodes and weights that no output needs; see :func:`with_short_names` for ``keep``."""
        live = {value.name for value in outputs}
        nodes = _needed(self._nodes, live)
        weights = [tensor for name, tensor in self.initializers.items() if name in live]
        graph = helper.make_graph(nodes, "espnet_ee", inputs, outputs, weights)
        opsets = [helper.make_opsetid(domain, version) for domain, version in sorted(self._opsets.items())]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=self._ir_version, producer_name="espnet_ee")
        return with_short_names(model, keep)


def with_short_names(model: ModelProto, keep: Collection[str] = ()) -> ModelProto:
    """The model, changed, with nodes that have no names and values that have short ones: of a small model's 8-bit file names are 4 %.

    No branch may use a name twice. Names of inputs and outputs stay, and those to ``keep``.
    """
    graph = model.graph
    names = {name: name for name in ("", *keep, *(value.name for value in (*graph.input, *graph.output)))}
    _shorten(graph, names)
    return model


def _shorten(graph: GraphProto, names: Names) -> None:
    def short(name: str) -> str:
        return names.setdefault(name, f"{len(names):X}")

    for value in (*graph.initializer, *graph.input, *graph.output, *graph.value_info):
        value.name = short(value.name)
    for node in graph.node:
        node.ClearField("name")
        node.input[:], node.output[:] = map(short, node.input), map(short, node.output)
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                _shorten(attribute.g, names)


def _needed(nodes: Sequence[NodeProto], live: set[str]) -> list[NodeProto]:
    """The nodes that the values ``live`` are made of, in their order; ``live`` gets everything that they read."""
    needed = []
    for node in reversed(nodes):
        if not live.isdisjoint(node.output):
            needed.append(node)
            live.update(node.input)
            for attribute in node.attribute:
                if attribute.type == AttributeProto.GRAPH:
                    branch = attribute.g
                    live.update(value.name for value in branch.output)
                    kept = _needed(branch.node, live)
                    branch.ClearField("node")
                    branch.node.extend(kept)
    return needed[::-1]
