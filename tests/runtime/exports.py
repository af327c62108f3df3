"""Tiny exported models made by hand: a linear layer a segment, a linear head; and what NumPy says they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import TensorProto, helper, numpy_helper

TOKENS = ("<blank>", "<unk>", "▁", "A", "B", "C", "D", "<sos/eos>")
LAYERS = (1, 2, 4)
WIDTH, MELS, LEAST = 8, 16, 7
PARABOLA = {"at_one": 100, "step": 90, "growth": 2}

Change = Callable[[onnx.ModelProto], None]


@dataclass(frozen=True)
class Weights:
    """Of one segment: the layer's matrix (D, WIDTH) and the head's (WIDTH, V)."""

    layer: np.ndarray
    head: np.ndarray


def weights(seed: int = 0) -> list[Weights]:
    random = np.random.default_rng(seed)
    return [
        Weights(
            (random.standard_normal((WIDTH if number else MELS, WIDTH)) * (0.5 if number else 0.1)).astype(np.float32),
            random.standard_normal((WIDTH, len(TOKENS))).astype(np.float32),
        )
        for number in range(len(LAYERS))
    ]


def segment(made: Weights, first: bool) -> onnx.ModelProto:
    """hidden_out = tanh(x W), log_probs = log softmax(hidden_out U), and what is reduced of them."""
    x, lens = ("x", "x_lens") if first else ("hidden", "lens")
    constants = {"W": made.layer, "U": made.head, "least": np.array(LEAST if first else 0), "last": np.array([-1])}
    nodes = [
        helper.make_node("MatMul", [x, "W"], ["linear"]),
        helper.make_node("Tanh", ["linear"], ["hidden_out"]),
        helper.make_node("Max", [lens, "least"], ["lens_out"]),
        helper.make_node("MatMul", ["hidden_out", "U"], ["logits"]),
        helper.make_node("LogSoftmax", ["logits"], ["log_probs"], axis=-1),
        helper.make_node("ArgMax", ["log_probs"], ["label"], axis=-1, keepdims=0),
        helper.make_node("ReduceMax", ["log_probs", "last"], ["log_confidence"], keepdims=0),
        helper.make_node("Exp", ["log_probs"], ["probabilities"]),
        helper.make_node("Mul", ["probabilities", "log_probs"], ["products"]),
        helper.make_node("ReduceSum", ["products", "last"], ["sums"], keepdims=0),
        helper.make_node("Neg", ["sums"], ["entropy"]),
    ]
    batch = ("N", "T")
    inputs = [(x, TensorProto.FLOAT, (*batch, len(made.layer))), (lens, TensorProto.INT64, batch[:1])]
    outputs = [
        ("hidden_out", TensorProto.FLOAT, (*batch, WIDTH)),
        ("lens_out", TensorProto.INT64, batch[:1]),
        ("label", TensorProto.INT64, batch),
        ("log_confidence", TensorProto.FLOAT, batch),
        ("entropy", TensorProto.FLOAT, batch),
        ("log_probs", TensorProto.FLOAT, (*batch, len(TOKENS))),
    ]
    values = [[helper.make_tensor_value_info(*value) for value in part] for part in (inputs, outputs)]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "tiny", *values, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def description(**changes: Any) -> dict[str, Any]:
    """A ``model.yaml``."""
    return {
        "format": 1,
        "sample_rate": 16000,
        "blank": 0,
        "tokens": "tokens.txt",
        "features": {"kind": "kaldi_fbank", "n_mels": MELS},
        "normalize": "none",
        "min_frames": LEAST,
        "segments": [{"layer": n, "fp32": f"segment_{n:02}.onnx", "int8": f"segment_{n:02}.int8.onnx"} for n in LAYERS],
        "macs": {
            "min_frames": 1,
            "stride": 1,
            "front": [50],
            "front_step": 40,
            "blocks": {n: [{**PARABOLA, "at_one": 100 * n}] for n in LAYERS},
            "heads": {n: {"at_one": 10, "step": 10, "growth": 0} for n in LAYERS},
        },
        **changes,
    }


def write_export(folder: Path, seed: int = 0, change: Mapping[int, Change] | None = None, **changes: Any) -> Path:
    """Writes an ``onnx`` folder; the "int8" graphs are those of other weights, so that one tells them apart.

    Args:
        folder: to be made.
        seed: of the weights.
        change: by exit layer, what is done to its fp32 graph before it is written.
        changes: of ``model.yaml``.
    """
    folder.mkdir(parents=True)
    for suffix, made in (("", weights(seed)), (".int8", weights(seed + 1000))):
        for layer, part in zip(LAYERS, made, strict=True):
            model = segment(part, layer == LAYERS[0])
            if change and layer in change and not suffix:
                change[layer](model)
            (folder / f"segment_{layer:02}{suffix}.onnx").write_bytes(model.SerializeToString())
    lines = [f"{token} {number}\n" for number, token in enumerate(TOKENS)]
    (folder / "tokens.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "model.yaml").write_text(yaml.safe_dump(description(**changes)), encoding="utf-8")
    return folder


def expected(features: np.ndarray, seed: int = 0) -> list[np.ndarray]:
    """Log-probabilities (T, V) of every exit for features (T, MELS)."""
    hidden, exits = features.astype(np.float64), []
    for part in weights(seed):
        hidden = np.tanh(hidden @ part.layer)
        logits = hidden @ part.head
        exits.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    return exits
