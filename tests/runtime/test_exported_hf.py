"""A fine-tuned wav2vec 2.0, HuBERT or WavLM as graphs that take samples: what torch computes, in batches and without torch."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml

from espnet_ee.api import EarlyExitASR
from espnet_ee.cli.main import main
from espnet_ee.decode.loop import recognise
from espnet_ee.decode.torch_session import TorchSession
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.entropy import EntropyPolicy
from espnet_ee.runtime.model import open_export
from espnet_ee.runtime.onnx_session import OnnxSession
from espnet_ee.store.onnx_graphs import trace_segment
from espnet_ee.store.onnx_modules import segments_of
from espnet_ee.text import collapse
from tests import hf, tiny
from tests.store import onnx_models

# 325 samples a frame, 320 for each further one; the time of a trace grows with the convolutions.
SHORT: dict[str, Any] = {"conv_dim": [8, 8], "conv_kernel": [10, 64], "conv_stride": [5, 64]}
LENGTHS = (8000, 5000, 12000, 3210, 100)


def settings(folder: Path, family: str, pre_norm: bool, blocks: int = 1, **changes: Any) -> dict[str, Any]:
    """Of a model with an exit after every block, as a change of :func:`tests.tiny.config`."""
    pretrained = hf.save(folder, family, pre_norm, blocks=blocks, **{**SHORT, **changes})
    return hf.settings(pretrained, exit_layers=list(range(1, blocks + 1)))


@hf.every_kind
def test_what_is_traced_of_every_family_is_what_torch_computes(tmp_path: Path, family: str, pre_norm: bool) -> None:
    model = onnx_models.model(**settings(tmp_path, family, pre_norm, blocks=2))
    for lengths in (LENGTHS, (640,)):
        onnx_models.assert_equal_to_torch(model, list(segments_of(model).values()), lengths)


def test_a_graph_equals_torch(tmp_path: Path) -> None:
    # Of another attention and another front end than the export's below.
    model = onnx_models.model(**settings(tmp_path, "wav2vec2", True))
    graph = trace_segment(segments_of(model)[1])
    for lengths in (LENGTHS, (640,)):
        onnx_models.assert_equal_to_torch(model, [graph], lengths)
    weights = [list(tensor.dims) for tensor in graph.graph.initializer]
    # The convolution of positions is one weight, not a norm and a direction.
    assert weights.count([16, 8, 8]) == 1 and [1, 1, 8] not in weights


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[TorchSession, Path]:
    """A model whose upper segment needs a carry and whose exits have norms, and its export by the command."""
    folder = tmp_path_factory.mktemp("exported")
    conf = settings(folder / "pretrained", "wavlm", True, blocks=2, feat_extract_norm="group")
    model = onnx_models.model(**conf)
    (folder / "exp/policies").mkdir(parents=True)
    tiny.save(folder / "exp", model, **conf)
    speech = onnx_models.speech(LENGTHS)
    session = TorchSession(model)
    entropies = [result.rows[0].evidence.entropy for result in recognise(session, DecodingConfig(), speech, True)]
    text = f"policy: entropy\npolicy_conf: {{threshold: {float(np.median(entropies)) + 1e-4}}}\n"
    (folder / "exp/policies/decode_entropy_a.yaml").write_text(text)
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        main(["export", "--model", str(folder / "exp"), "--out", str(folder), "--int8", "--exit_layer", "1"])
    assert "the graphs take samples, which sherpa-onnx does not give" in written.getvalue()
    return session, folder / "onnx"


def test_what_is_exported_says_that_it_takes_samples(exported: tuple[TorchSession, Path]) -> None:
    session, folder = exported
    description = yaml.safe_load((folder / "model.yaml").read_text())
    assert description["features"] == {"kind": "samples", "fs": 16000}
    assert (description["min_frames"], description["frame_seconds"]) == (325, 0.02)
    assert [exit_["parameters"] for exit_ in description["exits"]] == sorted(
        exit_["parameters"] for exit_ in description["exits"]
    )
    for name in ("segment_01.onnx", "self_stopping.onnx", "exit_01.int8.onnx"):
        [x, _] = onnx.load(folder / name).graph.input
        assert [dim.dim_param or dim.dim_value for dim in x.type.tensor_type.shape.dim] == ["N", "T", 1]
    assert open_export(folder).macs == session.macs


def test_every_exit_is_torchs(exported: tuple[TorchSession, Path]) -> None:
    torch_session, folder = exported
    speech = onnx_models.speech(LENGTHS)
    ours = recognise(OnnxSession(open_export(folder), int8=False), DecodingConfig(), speech, keep_every_exit=True)
    theirs = recognise(torch_session, DecodingConfig(), speech, keep_every_exit=True)
    assert (
        len({token for result in theirs for row in result.rows for token in row.evidence.tokens}) > 2
    )  # or little is compared
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.text, mine.token_ids, mine.macs) == (other.text, other.token_ids, other.macs)
        for row, expected in zip(mine.rows, other.rows, strict=True):
            assert row.evidence.tokens == expected.evidence.tokens
            assert row.evidence.entropy == pytest.approx(expected.evidence.entropy, rel=1e-3, abs=1e-4)


def self_stopping(folder: Path, batch: list[np.ndarray]) -> list[tuple[tuple[int, ...], int]]:
    """Tokens and exit layer of each utterance by the one file; what is padded is no silence."""
    x = np.full((len(batch), max(map(len, batch)), 1), 0.5, np.float32)
    for row, samples in zip(x, batch, strict=True):
        row[: len(samples), 0] = samples
    outputs = onnx_models.run(folder / "self_stopping.onnx", {"x": x, "x_lens": np.array([len(samples) for samples in batch])})
    rows = zip(outputs["log_probs"], outputs["lens"], outputs["exit_layer"], strict=True)
    return [(tuple(collapse(table[:count].argmax(-1).tolist())), int(layer)) for table, count, layer in rows]


def test_its_policy_stops_where_torch_stops(exported: tuple[TorchSession, Path]) -> None:
    torch_session, folder = exported
    asr = EarlyExitASR.from_pretrained(folder.parent, engine="onnx", int8=False)
    assert asr.policy_name == "entropy_a" and isinstance(asr.config.policy, EntropyPolicy)
    unusual = [*onnx_models.speech(LENGTHS), np.zeros(8000, np.float32), onnx_models.speech((160_000,))[0]]
    there = [(result.token_ids, result.exit_layer) for result in recognise(torch_session, asr.config, unusual)]
    assert {layer for _, layer in there} == {1, 2}
    assert [(result.token_ids, result.exit_layer) for result in asr.recognise(unusual)] == there
    assert self_stopping(folder, unusual) == there == [self_stopping(folder, [samples])[0] for samples in unusual]


def test_what_is_not_a_number_leaves_its_neighbours_alone(exported: tuple[TorchSession, Path]) -> None:
    _, folder = exported
    broken, whole = np.full(8000, np.nan, np.float32), onnx_models.speech((5000,))[0]
    [(_, layer), neighbour] = self_stopping(folder, [broken, whole])
    assert layer == 2 and neighbour == self_stopping(folder, [whole])[0]


def test_int8_graphs_compute_an_utterance_alone(exported: tuple[TorchSession, Path]) -> None:
    _, folder = exported
    int8, speech = EarlyExitASR.from_pretrained(folder.parent, engine="onnx", int8=True), onnx_models.speech(LENGTHS)
    assert [result.score for result in int8.recognise(speech)] == [int8.recognise([samples])[0].score for samples in speech]
