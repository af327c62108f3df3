"""Exports that were made to do harm, or are damaged: one line that names the file, and nothing else is read or loaded."""

from __future__ import annotations

import contextlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from onnx import TensorProto, helper

from espnet_ee.api import EarlyExitASR
from espnet_ee.errors import UserError
from espnet_ee.runtime.onnx_file import read_signature
from tests.runtime.exports import LAYERS, description, segment, weights, write_export

SPEECH = np.random.default_rng(0).normal(0, 0.1, 4000).astype(np.float32)


def recognise(folder: Path) -> Any:
    return EarlyExitASR.from_pretrained(folder, engine="onnx").recognise([SPEECH])


def external(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def external_in_a_branch(model: onnx.ModelProto) -> None:
    constant = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.FLOAT, [1], [0.0]))
    external_tensor = constant.attribute[0].t
    external_tensor.data_location = TensorProto.EXTERNAL
    external_tensor.external_data.add(key="location", value="other.bin")
    branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])])
    model.graph.node.append(helper.make_node("If", ["condition"], ["d"], then_branch=branch, else_branch=branch))


def custom_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def functions(model: onnx.ModelProto) -> None:
    function = helper.make_function("", "f", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], model.opset_import)
    model.functions.append(function)


def huge_tensor(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [1 << 40, 8]


def dimensions_without_end(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims.extend([1 << 62] * 1000)


def huge_output(model: onnx.ModelProto) -> None:
    model.graph.output[-1].type.tensor_type.shape.dim[2].dim_value = 1 << 40


def another_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("secret", TensorProto.FLOAT, [1]))


def renamed_output(model: onnx.ModelProto) -> None:
    model.graph.output[2].name = "labels"


def another_rank(model: onnx.ModelProto) -> None:
    del model.graph.output[-1].type.tensor_type.shape.dim[2]


def another_type(model: onnx.ModelProto) -> None:
    model.graph.output[2].type.tensor_type.elem_type = TensorProto.FLOAT


def more_tokens(model: onnx.ModelProto) -> None:
    model.graph.output[-1].type.tensor_type.shape.dim[2].dim_value = 9


def more_features(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 17


def broken_wiring(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nothing"


def longer_than_it_is(model: onnx.ModelProto) -> None:
    """A graph whose lengths are beyond its frames."""
    model.graph.node[2].op_type = "Add"
    model.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(np.array(10_000), "least"))


def more_tokens_than_it_says(model: onnx.ModelProto) -> None:
    head = model.graph.initializer[1]
    head.CopyFrom(onnx.numpy_helper.from_array(np.pad(onnx.numpy_helper.to_array(head), ((0, 0), (0, 1))), "U"))
    model.graph.output[-1].type.tensor_type.shape.dim[2].Clear()


def tokens_beyond_the_list(model: onnx.ModelProto) -> None:
    model.graph.node[5].output[0] = "best"
    model.graph.node.append(helper.make_node("Add", ["best", "many"], ["label"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1000), "many"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (external, "W lie in another file"),
        (external_in_a_branch, "c lie in another file"),
        (custom_operator, "operators of 'com.example'"),
        (functions, "functions"),
        (huge_tensor, "declares 8796093022208 numbers"),
        (dimensions_without_end, "declares 18446744073709551616 numbers"),
        (huge_output, "beyond 65536"),
        (another_input, "takes .*secret"),
        (renamed_output, "gives .*labels"),
        (another_rank, "log_probs of another type or number of dimensions"),
        (another_type, "label of another type"),
        (more_tokens, "log_probs is 9 wide where the model has 8"),
        (more_features, "x is 17 wide where the model has 16"),
    ],
)
def test_it_is_refused_before_anything_is_loaded(
    change: Callable[[onnx.ModelProto], None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_export(tmp_path / "onnx", change={1: change})
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: pytest.fail("it was loaded"))
    with pytest.raises(UserError, match=rf"segment_01\.onnx: .*{message}") as stop:
        recognise(folder)
    assert "\n" not in str(stop.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (broken_wiring, "ONNX Runtime cannot compute it"),
        (longer_than_it_is, "frames; export"),
        (tokens_beyond_the_list, "a token beyond the 8"),
        (more_tokens_than_it_says, "gives 9 tokens where .*model.yaml has 8"),
    ],
)
def test_what_only_shows_when_it_is_computed_is_one_line(
    change: Callable[[onnx.ModelProto], None], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as stop:
        recognise(write_export(tmp_path / "onnx", change={4: change}))
    assert "\n" not in str(stop.value)


def test_a_segment_of_another_model_is_refused(tmp_path: Path) -> None:
    def narrower(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 7

    with pytest.raises(UserError, match=r"segment_02\.onnx: hidden is 7 wide where the model has 8"):
        recognise(write_export(tmp_path / "onnx", change={2: narrower}))


def test_a_file_of_random_damage_is_refused_or_read(tmp_path: Path) -> None:
    """Never another error than ours, never a wait."""
    good = segment(weights()[0], True).SerializeToString()
    dice, path = random.Random(0), tmp_path / "x.onnx"
    for trial in range(400):
        bad = bytearray(good)
        for _ in range(dice.randint(1, 4)):
            bad[dice.randrange(len(bad))] = dice.randrange(256)
        path.write_bytes(bad[: dice.randrange(len(bad))] if trial % 3 == 0 else bad)
        with contextlib.suppress(UserError):
            read_signature(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 100, b"no ONNX at all", b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"]
)
def test_what_is_no_onnx_is_named(content: bytes, tmp_path: Path) -> None:
    folder = write_export(tmp_path / "onnx")
    (folder / "segment_01.onnx").write_bytes(content)
    with pytest.raises(UserError, match=r"segment_01\.onnx"):
        recognise(folder)


def test_a_graph_of_another_export_is_refused(tmp_path: Path) -> None:
    """The second file would be computed without a word, were it another exit's or another model's."""
    named = [{**entry, "graph": f"abc exit {entry['layer']}"} for entry in description()["segments"]]
    folder = write_export(tmp_path / "onnx", segments=named)
    for entry in named:
        graph = onnx.load(folder / entry["fp32"])
        graph.graph.name = entry["graph"]
        onnx.save(graph, folder / entry["fp32"])
    assert recognise(folder)
    shutil.copy(folder / named[-1]["fp32"], folder / named[1]["fp32"])
    with pytest.raises(UserError, match=r"another segment, or of another export"):
        recognise(folder)


def segments(**changes: Any) -> list[dict[str, Any]]:
    return [{**entry, **changes} for entry in description()["segments"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2.*update"),
        ({"sample_rate": 0}, "sample_rate is 0"),
        ({"sample_rate": "16k"}, "sample_rate is '16k'"),
        ({"blank": 8}, "blank is 8"),
        ({"vocabulary": 9}, "vocabulary is 9, but tokens.txt has 8"),
        ({"exit_layers": [1, 2]}, r"exit_layers is \[1, 2\], but its segments end after \[1, 2, 4\]"),
        ({"tokens": "../tokens.txt"}, r"tokens '\.\./tokens\.txt'.*refused"),
        ({"tokens": "/etc/passwd"}, "tokens '/etc/passwd'.*refused"),
        ({"tokens": "none.txt"}, r"none\.txt: no such file"),
        ({"segments": []}, "segments"),
        ({"segments": segments(fp32="../segment_01.onnx")}, "is not a file beside it"),
        ({"segments": segments(fp32="/tmp/x.onnx")}, "is not a file beside it"),
        ({"segments": segments(fp32="segment_01.ort")}, r"ends in \.onnx"),
        ({"segments": segments(layer=1)}, "do not rise"),
        ({"segments": [{"layer": n} for n in LAYERS]}, "no graphs of every segment"),
        ({"macs": {}}, "macs"),
        ({"macs": {**description()["macs"], "stride": 0}}, "macs"),
        ({"macs": {**description()["macs"], "blocks": []}}, "macs"),
        ({"macs": {**description()["macs"], "heads": list(range(20))}}, "macs"),
        ({"macs": {**description()["macs"], "front": [10**30]}}, "macs"),
        ({"min_frames": 10**9}, "min_frames is 1000000000"),
        ({"normalize": "utterance"}, "normalize 'utterance'"),
        ({"features": {"kind": "s3prl"}}, "kind 's3prl'"),
        ({"features": {"kind": "kaldi_fbank", "n_mels": 16}, "sample_rate": 50}, "fs is 50; more than 840 Hz"),
        ({"features": {"kind": "samples"}}, "x is 16 wide where the model has 1;"),
        ({"frame_seconds": float("nan")}, "frame_seconds is nan"),
        ({"default": "quick"}, "default 'quick'"),
    ],
)
def test_a_description_that_cannot_be_is_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"onnx/.*{message}"):
        recognise(write_export(tmp_path / "onnx", **changes))


@pytest.mark.parametrize("lines", ["", "A\n", "A 0\nB 0\n", "A 0\nB 2\n", "A -1\n", "A 99999999999999999999\n"])
def test_broken_tokens_are_named(lines: str, tmp_path: Path) -> None:
    folder = write_export(tmp_path / "onnx")
    (folder / "tokens.txt").write_text(lines)
    with pytest.raises(UserError, match=r"tokens\.txt"):
        recognise(folder)


def test_aliases_and_tags_are_not_followed(tmp_path: Path) -> None:
    folder = write_export(tmp_path / "onnx")
    text = yaml.safe_dump(description())
    for bad in (f"a: &a [1]\nb: *a\n{text}", f"a: !!python/object/apply:os.getcwd []\n{text}"):
        (folder / "model.yaml").write_text(bad)
        with pytest.raises(UserError, match=r"model\.yaml:(1:)? not plain YAML"):
            recognise(folder)
