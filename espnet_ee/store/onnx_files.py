"""Whole recognisers as one ONNX file, put together of the segments' graphs: one exit's, or one that stops by itself.

Both take features ``x`` (N, L, F) with ``x_lens`` (N,), of any length, and give ``log_probs`` (N, T, V) with ``lens`` (N,): what
sherpa-onnx calls a zipformer CTC model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, helper

from espnet_ee.errors import UserError
from espnet_ee.files import atomic_write
from espnet_ee.policy.base import ExitPolicy
from espnet_ee.store.onnx_assembly import Assembly, Names, piece
from espnet_ee.store.onnx_stop import THRESHOLD, StopRule, stop_rule, threshold_of

_STEP = 4  # input frames of 10 ms that sherpa-onnx takes for one of the output
_AT_LEAST = """at_least (float[N, L, F] x, int64 least) => (float[N, M, F] padded) {
    axis = Constant<value_ints=[0]>()  none = Constant<value_ints=[0]>()  nones = Constant<value_ints=[0, 0, 0, 0]>()
    length = Shape<start=1, end=2>(x)  short = Sub(least, length)  missing = Max(short, none)
    pads = Concat<axis=0>(nones, missing, none)  padded = Pad(x, pads)
}"""
_KEEP = """keep (bool[N] stopped, float[N, T, V] old, float[N, T, V] new, int64[N] old_layer, int64 layer, bool[N] stops)
    => (float[N, T, V] log_probs, int64[N] exit_layer, bool[N] stop) {
    axes = Constant<value_ints=[1, 2]>()  rows = Unsqueeze(stopped, axes)
    log_probs = Where(rows, old, new)  exit_layer = Where(stopped, old_layer, layer)  stop = Or(stopped, stops)
}"""
_ALL = """every (bool[N] stop) => (bool all) {
    number = Cast<to=6>(stop)  least = ReduceMin<keepdims=0>(number)  all = Cast<to=9>(least)
}"""
_LAYER = (
    """layers (int64[N] lens, int64 layer) => (int64[N] exit_layer) { size = Shape(lens)  exit_layer = Expand(layer, size) }"""
)
# Each frame as often as it takes: output frame j is the one at j * step / factor.
_AGAIN = """again (float[N, T, V] log_probs, int64[N] lens, int64 factor) => (float[N, U, V] repeated, int64[N] repeated_lens) {
    zero = Constant<value_int=0>()  one = Constant<value_int=1>()  step = Constant<value_int=4>()  up = Constant<value_int=3>()
    shape = Shape<start=1, end=2>(log_probs)  length = Squeeze(shape)
    all = Mul(length, factor)  all_up = Add(all, up)  count = Div(all_up, step)  places = Range(zero, count, one)
    starts = Mul(places, step)  frames = Div(starts, factor)  repeated = Gather<axis=1>(log_probs, frames)
    real = Mul(lens, factor)  real_up = Add(real, up)  repeated_lens = Div(real_up, step)
}"""
_FRAMES = ("label", "log_confidence", "entropy")


@dataclass(frozen=True)
class Shape:
    """What the files need to know of a model beside its graphs.

    Attributes:
        width: dimension of the features F.
        min_frames: shortest input of the first graph.
        factor: input frames for an encoder frame, of 10 ms each, 4 or more; None where the input's frames are no such.
        vocabulary: number of tokens V.
        blank: blank id.
    """

    width: int
    min_frames: int
    factor: int | None
    vocabulary: int
    blank: int


def single_exit(segments: Mapping[int, ModelProto], layer: int, shape: Shape) -> ModelProto:
    """The exit after block ``layer`` as a plain CTC model; ``segments`` are graphs by exit layer, rising, from the first on."""
    graph = Assembly()
    values = _begin(graph, shape)
    for exit_layer, segment in segments.items():
        if exit_layer <= layer:
            values = _advance(graph, segment, values)
    return _finish(graph, shape, {"log_probs": values["log_probs"], "lens": values["lens"]})


def self_stopping(segments: Mapping[int, ModelProto], policy: ExitPolicy, shape: Shape) -> ModelProto:
    """A model that computes a batch as far as its utterances need it; each gets what its own exit says.

    Further output: ``exit_layer`` (N,). The policy's threshold is the weight ``threshold``. ``segments`` are all
    graphs by exit layer, rising.

    Raises:
        UserError: a graph cannot compute what the policy reads.
    """
    graph = Assembly()
    graph.constant(THRESHOLD, helper.make_tensor(THRESHOLD, TensorProto.FLOAT, [], [threshold_of(policy)]))
    rule = stop_rule(policy, shape.vocabulary, shape.blank)
    values = _from_exit(graph, list(segments.items()), _begin(graph, shape), rule, shape, None)
    return _finish(graph, shape, values)


def _begin(graph: Assembly, shape: Shape) -> Names:
    """The features, not shorter than the subsampling takes."""
    least = _whole(graph, shape.min_frames)
    return {"x": graph.place(piece(_AT_LEAST), {"x": "x", "least": least})["padded"], "x_lens": "x_lens"}


def _whole(graph: Assembly, number: int) -> str:
    return graph.place(piece(f"number () => (int64 n) {{ n = Constant<value_int={number}>() }}"), {})["n"]


def _advance(graph: Assembly, segment: ModelProto, values: Names) -> Names:
    """Places a segment on what the one below gives: its output ``NAME_out`` is the next one's input ``NAME``."""
    placed = graph.place(segment, {value.name: values[value.name] for value in segment.graph.input})
    return {value.name.removesuffix("_out"): placed[value.name] for value in segment.graph.output}


def _from_exit(
    graph: Assembly,
    segments: list[tuple[int, ModelProto]],
    values: Names,
    rule: StopRule,
    shape: Shape,
    before: Names | None,
) -> Names:
    """Places the first of the segments and, in an ``If``, those above it.

    Args:
        graph: where.
        segments: by exit layer, those not yet placed.
        values: inputs of the first.
        rule: asked at every exit but the last.
        shape: of the model.
        before: of the exit below: ``log_probs``, ``exit_layer`` and ``stop`` of each utterance; None: there is none.

    Returns:
        The names of ``log_probs``, ``lens`` and ``exit_layer``.
    """
    (layer, segment), *above = segments
    values = _advance(graph, segment, values)
    here = _whole(graph, layer)
    frames = {name: values[name] for name in (*_FRAMES, "lens")}
    stop = rule.stop(graph, layer, frames) if above else ""
    if before is None:
        reached = graph.place(piece(_LAYER), {"lens": values["lens"], "layer": here})
        result = {"log_probs": values["log_probs"], "exit_layer": reached["exit_layer"], "stop": stop}
    else:
        old = {"stopped": before["stop"], "old": before["log_probs"], "old_layer": before["exit_layer"]}
        new = {"new": values["log_probs"], "layer": here, "stops": stop or before["stop"]}
        kept = graph.place(piece(_KEEP), {**old, **new})
        result = {name: kept[name] for name in ("log_probs", "exit_layer", "stop")}
    if above:
        result |= _if_all_stop(graph, above, values, rule, shape, result)
    return {"log_probs": result["log_probs"], "lens": values["lens"], "exit_layer": result["exit_layer"]}


def _if_all_stop(
    graph: Assembly,
    above: list[tuple[int, ModelProto]],
    values: Names,
    rule: StopRule,
    shape: Shape,
    result: Names,
) -> Names:
    """Places an ``If`` whose one branch is this exit's result, and the other everything above."""
    every = graph.place(piece(_ALL), {"stop": result["stop"]})["all"]
    names = ("log_probs", "exit_layer")
    branches = {}
    for kind in ("then_branch", "else_branch"):
        with graph.branch() as nodes:
            ends = result if kind == "then_branch" else _from_exit(graph, above, values, rule, shape, result)
            outputs = {name: f"{kind}/{above[0][0]}/{name}" for name in names}
            for name in names:  # a branch's output may not be a value from outside
                graph.node("Identity", [ends[name]], [outputs[name]])
        branches[kind] = helper.make_graph(nodes, kind, [], _outputs(shape, outputs))
    chosen = {name: f"if/{above[0][0]}/{name}" for name in names}
    graph.node("If", [every], list(chosen.values()), **branches)
    return chosen


def _outputs(shape: Shape, names: Mapping[str, str]) -> list[onnx.ValueInfoProto]:
    """Values with their types, from what they are to where they are."""
    kinds: dict[str, tuple[TensorProto.DataType, list[str | int | None]]] = {
        "log_probs": (TensorProto.FLOAT, ["N", "T_out", shape.vocabulary]),
        "lens": (TensorProto.INT64, ["N"]),
        "exit_layer": (TensorProto.INT64, ["N"]),
    }
    return [helper.make_tensor_value_info(name, *kinds[kind]) for kind, name in names.items()]


def _finish(graph: Assembly, shape: Shape, values: Names) -> ModelProto:
    if shape.factor is not None and shape.factor != _STEP:
        frames = {"log_probs": values["log_probs"], "lens": values["lens"], "factor": _whole(graph, shape.factor)}
        repeated = graph.place(piece(_AGAIN), frames)
        values = {**values, "log_probs": repeated["repeated"], "lens": repeated["repeated_lens"]}
    for kind, name in values.items():
        graph.node("Identity", [name], [kind])
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "T", shape.width]),
        helper.make_tensor_value_info("x_lens", TensorProto.INT64, ["N"]),
    ]
    return graph.finish(inputs, _outputs(shape, {kind: kind for kind in values}), keep=(THRESHOLD,))


def set_threshold(path: str | Path, threshold: float) -> None:
    """Changes the threshold of a self-stopping file, atomically.

    Raises:
        UserError: the file is missing, or none that stops by itself.
    """
    path = Path(path)
    try:
        model = onnx.load(path)
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == THRESHOLD)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; export it first (espnet-ee export --policy ...)") from None
    except StopIteration:
        raise UserError(f"{path}: has no weight {THRESHOLD!r}; give a self_stopping.onnx that espnet-ee export wrote") from None
    except Exception as error:  # whatever protobuf says of another file
        raise UserError(f"{path}: not an ONNX file: {' '.join(str(error).split())}") from None
    tensor.CopyFrom(helper.make_tensor(THRESHOLD, TensorProto.FLOAT, [], [threshold]))
    with atomic_write(path, "wb") as stream:
        stream.write(model.SerializeToString(deterministic=True))
