"""Tiny models for the export to ONNX, what stock ONNX Runtime computes of their graphs, and speech."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from espnet_ee.decode.torch_session import TorchSession
from espnet_ee.store.onnx_graphs import trace_segment
from espnet_ee.store.onnx_modules import Segment, segments_of
from tests import tiny

FAST: dict[str, Any] = {
    "output_size": 16,
    "attention_heads": 2,
    "linear_units": 24,
    "num_blocks": 2,
    "exit_layers": [1, 2],
    "subsampling": 8,
    "subsampling_channels": 8,
    "cnn_module_kernel": 7,
}


def settings(**changes: Any) -> dict[str, Any]:
    """A fast conformer on Kaldi's filter banks, as a change of :func:`tests.tiny.config`."""
    conf = {**FAST, **changes.pop("encoder_conf", {})}
    return {
        "encoder": "early_exit_fast_conformer",
        "encoder_conf": conf,
        "frontend": "kaldi_fbank",
        "frontend_conf": {},
        **changes,
    }


def model(seed: int = 0, **changes: Any) -> torch.nn.Module:
    """Such a model, whose heads say different tokens for different frames, at every exit others."""
    made = tiny.model(seed, **changes)
    for parameter in made.parameters():
        if parameter.dim() == 2 and parameter.size(0) == len(tiny.TOKENS):
            torch.nn.init.normal_(parameter)
    return made


@functools.cache
def traced() -> tuple[torch.nn.Module, tuple[onnx.ModelProto, ...]]:
    """A model with two exits and its graphs, for every test that can do with them: a trace takes seconds."""
    made = model(**settings(normalize="utterance_mvn"))
    return made, tuple(trace_segment(segment) for segment in segments_of(made).values())


def speech(lengths: Sequence[int], seed: int = 0) -> list[np.ndarray]:
    """Noise of these lengths, each as loud as it likes."""
    random = np.random.default_rng(seed)
    return [(random.standard_normal(length) * random.uniform(0.01, 0.3)).astype(np.float32) for length in lengths]


def features(made: torch.nn.Module, batch: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """What a device feeds: features as the frontend gives them; where an utterance is padded, a number that must not matter."""
    raw = []
    for samples in batch:
        with torch.no_grad():
            frames = made._extract_feats(torch.tensor(samples)[None], torch.tensor([len(samples)]))[0][0].numpy()
        raw.append(frames.reshape(len(frames), -1))  # of a model that takes samples these are the frames
    xs = np.full((len(raw), max(made.encoder.min_frames, *map(len, raw)), raw[0].shape[1]), -7.0, np.float32)
    for row, frames in zip(xs, raw, strict=True):
        row[: len(frames)] = frames
    return {"x": xs, "x_lens": np.array([len(frames) for frames in raw])}


Graph = onnx.ModelProto | Path | Segment


def run(graph: Graph, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs by name; of a segment that is not traced, too."""
    if isinstance(graph, Segment):
        with torch.no_grad():
            outputs = graph(*(torch.from_numpy(feed[name]) for name in graph.inputs))
        return {name: value.numpy() for name, value in zip(graph.outputs, outputs, strict=True)}
    source = str(graph) if isinstance(graph, Path) else graph.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def run_segments(graphs: Sequence[Graph], feed: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Every segment on the one below."""
    outputs = [run(graphs[0], feed)]
    for graph in graphs[1:]:
        outputs.append(run(graph, {"hidden": outputs[-1]["hidden_out"], "lens": outputs[-1]["lens_out"]}))
    return outputs


def assert_equal_to_torch(model: torch.nn.Module, graphs: Sequence[Graph], lengths: tuple[int, ...]) -> None:
    """Every exit, row and frame; what stands behind an utterance's frames is nobody's concern."""
    batch, session = speech(lengths), TorchSession(model)
    state, rows = session.start(batch), list(range(len(batch)))
    for output in run_segments(graphs, features(model, batch)):
        state = session.advance(state)
        for row, frames in enumerate(session.read(state, rows, frozenset({"log_probs"}))):
            count = len(frames.labels)
            assert output["lens_out"][row] == count
            assert output["label"].dtype == np.int64 and output["lens_out"].dtype == np.int64
            np.testing.assert_array_equal(output["label"][row, :count], frames.labels)
            for name in ("log_confidence", "entropy", "log_probs"):
                np.testing.assert_allclose(output[name][row, :count], getattr(frames, name), atol=1e-4)
