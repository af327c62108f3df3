"""One file that recognises: the exit it stops at and what it says are those of the loop in torch, for any batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import soundfile

from espnet_ee.decode.recognition import Recognition
from espnet_ee.errors import UserError
from espnet_ee.policy.base import ExitPolicy
from espnet_ee.policy.fixed import FixedExitPolicy
from espnet_ee.policy.registry import build_policy
from espnet_ee.store.onnx_description import token_lines
from espnet_ee.store.onnx_files import self_stopping, set_threshold, single_exit
from espnet_ee.store.onnx_folder import shape_of
from espnet_ee.store.onnx_graphs import write_model
from espnet_ee.text import collapse
from tests import tiny
from tests.store import onnx_models

LENGTHS = (16000, 5000, 24000, 300, 9999, 32000)
LEARNED: dict[str, Any] = {
    "weights": {"log_entropy": 0.5, "least_token_doubt": 1.0, "agreeing_exits": -0.1},
    "intercepts": {1: 0.1},
    "returns": {1: 0.2},
}


def graphs() -> dict[int, onnx.ModelProto]:
    return dict(enumerate(onnx_models.traced()[1], 1))


def recognised(policy: ExitPolicy, batch: Sequence[np.ndarray]) -> list[Recognition]:
    return tiny.asr(onnx_models.traced()[0], policy).recognise(batch)


def levels(name: str, batch: Sequence[np.ndarray]) -> list[float]:
    """What the policy compares with its threshold at the first exit, rising."""
    policy = policy_of(name, 0.5)
    exits = tiny.every_exit(onnx_models.traced()[0], list(batch))
    return sorted(policy.level([exit_.rows[0].evidence]) for exit_ in exits)  # type: ignore[attr-defined]


def policy_of(name: str, threshold: float) -> ExitPolicy:
    return build_policy(name, {**(LEARNED if name == "learned" else {}), "threshold": threshold})


def outputs_of(model: onnx.ModelProto, batch: Sequence[np.ndarray]) -> tuple[list[list[int]], list[int], np.ndarray]:
    """Tokens, exit layers and lengths."""
    outputs = onnx_models.run(model, onnx_models.features(onnx_models.traced()[0], batch))
    paths = [row[:length].argmax(-1).tolist() for row, length in zip(outputs["log_probs"], outputs["lens"], strict=True)]
    return [collapse(path) for path in paths], outputs["exit_layer"].tolist(), outputs["lens"]


@pytest.mark.parametrize("name", ["entropy", "confidence", "learned"])
def test_it_stops_where_the_loop_stops_and_says_the_same(name: str) -> None:
    batch = onnx_models.speech(LENGTHS)
    numbers = levels(name, batch)
    exits = set()
    for threshold in (0.0, (numbers[2] + numbers[3]) / 2, numbers[-1] + 1.0):
        policy = policy_of(name, threshold)
        model = self_stopping(graphs(), policy, shape_of(onnx_models.traced()[0]))
        for group in ([samples] for samples in batch), [batch], [batch[::-1]]:
            for utterances in group:
                tokens, layers, _ = outputs_of(model, utterances)
                expected = recognised(policy, utterances)
                assert layers == [recognition.exit_layer for recognition in expected]
                assert tokens == [list(recognition.token_ids) for recognition in expected]
                exits.add(tuple(sorted(set(layers))))
    assert exits >= {(1,), (2,), (1, 2)}  # all stopped below, none did, some did


def test_frames_are_repeated_to_40_ms_and_the_text_stays() -> None:
    model, shape = onnx_models.traced()[0], shape_of(onnx_models.traced()[0])
    batch = onnx_models.speech(LENGTHS)
    feed = onnx_models.features(model, batch)
    segment = onnx_models.run(graphs()[1], feed)
    outputs = onnx_models.run(single_exit(graphs(), 1, shape), feed)
    assert shape.factor == 8
    np.testing.assert_array_equal(outputs["lens"], 2 * segment["lens_out"])
    np.testing.assert_array_equal(outputs["log_probs"], np.repeat(segment["log_probs"], 2, axis=1))
    six = onnx_models.run(single_exit(graphs(), 1, type(shape)(**{**vars(shape), "factor": 6})), feed)
    count = segment["log_probs"].shape[1]
    places = np.arange((count * 6 + 3) // 4) * 4 // 6
    assert set(places) == set(range(count))  # every frame is there
    np.testing.assert_array_equal(six["log_probs"], segment["log_probs"][:, places])
    for row, (length, longer) in enumerate(zip(segment["lens_out"], six["lens"], strict=True)):
        assert places[longer - 1] == length - 1 and (longer == len(places) or places[longer] == length), row


def test_what_is_not_needed_is_not_there_and_weights_are_there_once() -> None:
    shape = shape_of(onnx_models.traced()[0])
    segments = graphs()
    first, both = single_exit(segments, 1, shape), single_exit(segments, 2, shape)
    stopping = self_stopping(segments, policy_of("entropy", 0.1), shape)
    weights = {
        exit_: sum(len(tensor.raw_data) for tensor in model.graph.initializer) for exit_, model in enumerate((first, both))
    }
    assert weights[0] < 0.8 * weights[1]
    assert sum(len(tensor.raw_data) for tensor in stopping.graph.initializer) <= 1.01 * sum(
        len(tensor.raw_data) for segment in segments.values() for tensor in segment.graph.initializer
    )
    assert "ArgMax" in {node.op_type for node in segments[1].graph.node} - {node.op_type for node in first.graph.node}
    (branch,) = (node for node in stopping.graph.node if node.op_type == "If")
    assert all(not attribute.g.initializer for attribute in branch.attribute)


def test_a_threshold_is_changed_in_place(tmp_path: Path) -> None:
    batch = onnx_models.speech(LENGTHS)
    write_model(tmp_path / "a.onnx", self_stopping(graphs(), policy_of("entropy", 0.0), shape_of(onnx_models.traced()[0])))
    before = (tmp_path / "a.onnx").read_bytes()
    assert set(outputs_of(onnx.load(tmp_path / "a.onnx"), batch)[1]) == {2}
    set_threshold(tmp_path / "a.onnx", 10.0)
    assert set(outputs_of(onnx.load(tmp_path / "a.onnx"), batch)[1]) == {1}
    set_threshold(tmp_path / "a.onnx", 0.0)
    assert (tmp_path / "a.onnx").read_bytes() == before
    write_model(tmp_path / "b.onnx", single_exit(graphs(), 1, shape_of(onnx_models.traced()[0])))
    (tmp_path / "c.onnx").write_text("none")
    for name, message in (("b.onnx", "threshold"), ("c.onnx", "not an ONNX"), ("d.onnx", "no such file")):
        with pytest.raises(UserError, match=message):
            set_threshold(tmp_path / name, 0.5)


def test_sherpa_onnx_reads_the_files_and_says_the_same(tmp_path: Path) -> None:
    sherpa = pytest.importorskip("sherpa_onnx", reason="the wheel of sherpa-onnx is not installed")
    model, shape = onnx_models.traced()[0], shape_of(onnx_models.traced()[0])
    batch = onnx_models.speech((16000, 5000, 24000, 32000))
    numbers = levels("entropy", batch)
    policy = policy_of("entropy", (numbers[1] + numbers[2]) / 2)
    write_model(tmp_path / "self_stopping.onnx", self_stopping(graphs(), policy, shape))
    write_model(tmp_path / "exit_01.onnx", single_exit(graphs(), 1, shape))
    (tmp_path / "tokens.txt").write_text("".join(f"{line}\n" for line in token_lines(model.token_list, model.blank_id)))
    said = set()
    for name, rule in (("self_stopping", policy), ("exit_01", FixedExitPolicy(1))):
        recogniser = sherpa.OfflineRecognizer.from_zipformer_ctc(str(tmp_path / f"{name}.onnx"), str(tmp_path / "tokens.txt"))
        for samples in batch:
            soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
            read, rate = soundfile.read(tmp_path / "a.wav", dtype="float32")
            stream = recogniser.create_stream()
            stream.accept_waveform(rate, read)
            recogniser.decode_stream(stream)
            expected = recognised(rule, [samples])[0]
            # Tokens that are no words: sherpa writes them out, ESPnet's own recogniser leaves the end of a sentence away.
            tokens = ["▁" if token == "<space>" else token for token in expected.tokens]
            assert [" " if token == "▁" else token for token in tokens] == [
                token.replace("▁", " ") for token in stream.result.tokens
            ]
            assert all(0 <= time <= len(samples) / 16000 for time in stream.result.timestamps)
            said.add((name, expected.exit_layer, expected.text))
    assert {layer for name, layer, _ in said if name == "self_stopping"} == {1, 2} and len({text for _, _, text in said}) > 2
