"""Modules made into ONNX models, and those into smaller ones: one file each, no traces of where they were made."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch.nn.utils import parametrize

from espnet_ee.errors import UserError, first_line
from espnet_ee.files import atomic_write
from espnet_ee.store.onnx_assembly import with_short_names
from espnet_ee.store.onnx_modules import Segment

OPSET = 18  # of 2022: what phones' runtimes have
TOLERANCE = 1e-2  # rounding of an untrained model on noise stays far below, a wrong length far above


def trace(module: torch.nn.Module, arguments: Sequence[Any], inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
    """An ONNX model of a module, for any batch and length: the first two dimensions of every argument are free.

    Args:
        module: in evaluation mode.
        arguments: examples, of other sizes than 0 and 1.
        inputs: their names.
        outputs: names of what the module returns.
    """
    free = tuple(dict.fromkeys(range(min(2, argument.dim())), torch.export.Dim.DYNAMIC) for argument in arguments)
    with quiet(), torch.no_grad(), _one_line():
        program = torch.onnx.export(
            module,
            tuple(arguments),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=free,
            verbose=False,
        )
    assert program is not None
    return with_short_names(without_guards(without_traces(program.model_proto)))


@contextmanager
def _one_line() -> Iterator[None]:
    """What the exporter cannot trace is told in a line; its own account of it is long."""
    try:
        yield
    except torch.onnx.OnnxExporterError as error:
        reason = first_line(error.__cause__ or error)
        raise UserError(f"this model has no ONNX form: torch cannot trace it ({reason})") from error


@contextmanager
def quiet() -> Iterator[None]:
    """The exporter warns of its own insides, and the quantiser (on the root logger) of a step that the exporter has done."""
    loggers = [logging.getLogger(name) for name in (None, "torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without lines and paths of the code that it was made of, and with names for its free dimensions."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.ClearField("value_info")
    graph.name = "espnet_ee"
    model.producer_name, model.producer_version = "espnet_ee", ""
    for value in (*graph.input, *graph.output):
        for name, dim in zip(("N", "T"), value.type.tensor_type.shape.dim, strict=False):
            if not dim.HasField("dim_value"):
                dim.dim_param = name if name == "N" or value in graph.input else "T_out"
    return model


def without_guards(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, changed, without what torch's attention does for a query that sees no key: here every query sees one.

    The exporter looks at each attention weight whether it is NaN: a seventh of a segment's time.
    """
    graph, makers = model.graph, {name: node for node in model.graph.node for name in node.output}
    weights: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Where" and (test := makers.get(node.input[0])) and test.op_type == "IsNaN":
            weight = makers.get(test.input[0])
            if weight is not None and weight.op_type == "Softmax" and node.input[2] == test.input[0]:
                weights[node.output[0]] = node.input[2]
    for node in graph.node:
        node.input[:] = [weights.get(name, name) for name in node.input]
    unused = [node for node in graph.node if weights.keys() & set(node.output)]
    read = {name for node in graph.node if node not in unused for name in node.input}
    unused += [node for node in graph.node if node.op_type == "IsNaN" and node.output[0] not in read]
    for node in unused:
        graph.node.remove(node)
    return model


def trace_segment(segment: Segment) -> onnx.ModelProto:
    """The graph of a segment; see :class:`Segment` for its outputs."""
    lengths = torch.tensor([segment.least + 40 * segment.step, segment.least + 9 * segment.step])
    example = (torch.zeros(2, int(lengths[0]), segment.width), lengths)
    # A weight that is computed of others (wav2vec 2.0's convolution of positions) is computed here, once, and then a constant.
    with torch.no_grad(), parametrize.cached():
        segment(*example)  # what cannot be computed at all is said here; the exporter would wrap it
        model = trace(segment, example, segment.inputs, segment.outputs)
    check_graph(segment, model)
    return model


def check_graph(segment: Segment, model: onnx.ModelProto) -> None:
    """Compares a graph with the module that it was made of, on noise of other sizes than those it was traced with.

    Raises:
        UserError: they differ: something of the module was taken for a constant.
    """
    import onnxruntime

    lengths = torch.tensor([segment.least + 57 * segment.step, segment.least + 21 * segment.step, segment.least])
    noise = torch.randn(3, int(lengths[0]), segment.width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = dict(zip(segment.outputs, segment(noise, lengths), strict=True))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = session.run(list(segment.outputs), dict(zip(segment.inputs, (noise.numpy(), lengths.numpy()), strict=True)))
    outputs = {name: torch.from_numpy(value) for name, value in zip(segment.outputs, values, strict=True)}
    frames = expected["lens_out"]
    apart = [
        difference(outputs[name][row, :count], expected[name][row, :count])
        for name in ("hidden_out", "log_probs", "entropy")
        for row, count in enumerate(frames.tolist())
        if count
    ]
    if not torch.equal(outputs["lens_out"], frames) or not max(apart) < TOLERANCE:
        raise UserError(
            f"this model has no ONNX form: its graph differs from torch by {max(apart):.2g} on audio of another length; "
            "torch took something for a constant"
        )


def difference(values: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, as a share of the largest number where that is above 1: large SSL models have states of thousands."""
    return float((values - expected).abs().max() / expected.abs().max().clamp(min=1.0))


def write_model(path: Path, model: onnx.ModelProto) -> None:
    """Writes a model atomically, checked, with all its weights inside."""
    onnx.checker.check_model(model)
    with atomic_write(path, "wb") as stream:
        stream.write(model.SerializeToString(deterministic=True))
