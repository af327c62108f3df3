"""``espnet-ee export`` writes a folder that tells all that an engine without torch must know, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
import yaml

from espnet_ee.cli.main import main
from espnet_ee.compute import MacTable, Parabola
from espnet_ee.errors import UsageError, UserError
from espnet_ee.model.heads import mac_table
from espnet_ee.store import onnx_graphs
from espnet_ee.store.onnx_description import describe_model, fingerprint, token_lines
from espnet_ee.store.onnx_folder import OnnxExport, export_onnx
from tests import tiny
from tests.store import onnx_models


@pytest.fixture(autouse=True)
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs that other tests made of the same model, instead of a new trace."""
    graphs = onnx_models.traced()[1]
    monkeypatch.setattr(onnx_graphs, "trace_segment", lambda segment: graphs[segment.layer - 1])


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """An experiment's folder with a calibrated policy."""
    folder = tmp_path / "exp"
    (folder / "policies").mkdir(parents=True)
    (folder / "policies/decode_entropy_a.yaml").write_text("policy: entropy\npolicy_conf: {threshold: 0.2}\n")
    tiny.save(folder, onnx_models.traced()[0], **onnx_models.settings(normalize="utterance_mvn"))
    return folder


def test_the_command_exports_an_experiment(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = experiment.parent / "out"
    main(["export", "--model", str(experiment), "--out", str(out), "--int8"])
    assert "2 of 2 segments" in capsys.readouterr().out
    description = yaml.safe_load((out / "onnx/model.yaml").read_text())
    model = onnx_models.traced()[0]
    assert description["parameters_sha256"] == fingerprint(model)
    assert description["exit_layers"] == [1, 2] and description["default"] == "entropy_a"
    assert (out / "onnx/decode_entropy_a.yaml").is_file()
    names = [segment[kind] for segment in description["segments"] for kind in ("fp32", "int8")]
    assert names == ["segment_01.onnx", "segment_01.int8.onnx", "segment_02.onnx", "segment_02.int8.onnx"]
    for name in names:
        onnx.checker.check_model(onnx.load(out / "onnx" / name))
    assert [segment["layer"] for segment in description["segments"]] == [1, 2]


def test_self_stopping_files_and_single_exits_are_written_and_thresholds_changed(
    experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = experiment.parent / "out"
    (experiment.parent / "mine.yaml").write_text("policy: fixed\npolicy_conf: {exit_layer: 1}\n")
    main(["export", "--model", str(experiment), "--out", str(out), "--int8", "--exit_layer", "1", "2"])
    description = yaml.safe_load((out / "onnx/model.yaml").read_text())
    stopping = description["self_stopping"]
    assert stopping["policy"]["policy_conf"] == {"threshold": 0.2}
    files = [
        stopping["fp32"],
        stopping["int8"],
        *(exit_[kind] for exit_ in description["single_exits"] for kind in ("fp32", "int8")),
    ]
    assert files == [
        "self_stopping.onnx",
        "self_stopping.int8.onnx",
        "exit_01.onnx",
        "exit_01.int8.onnx",
        "exit_02.onnx",
        "exit_02.int8.onnx",
    ]
    feed = onnx_models.features(onnx_models.traced()[0], onnx_models.speech((9000,)))
    for threshold, layer in ((0.0, 2), (5.0, 1)):
        main(["set-threshold", "--model", str(out), "--threshold", str(threshold)])
        assert (
            yaml.safe_load((out / "onnx/model.yaml").read_text())["self_stopping"]["policy"]["policy_conf"]["threshold"]
            == threshold
        )
        for name in files[:2]:
            assert onnx_models.run(out / "onnx" / name, feed)["exit_layer"].tolist() == [layer]
    assert "self_stopping.int8.onnx: threshold 5 of entropy (before: 0)" in capsys.readouterr().out
    with pytest.raises(UsageError, match="policy entropy: threshold -0.1: give a number from 0 on"):
        main(["set-threshold", "--model", str(out), "--threshold", "-0.1"])
    main(["export", "--model", str(experiment), "--out", str(out), "--policy", str(experiment.parent / "mine.yaml")])
    description = yaml.safe_load((out / "onnx/model.yaml").read_text())
    assert description["default"] == "mine" and not list((out / "onnx").glob("*int8*"))
    for threshold, message in (("3", "exit_layer among 1 2"), ("1.5", "exit_layer must be of type int")):
        with pytest.raises(UserError, match=message):
            main(["set-threshold", "--model", str(out), "--threshold", threshold])
    main(["set-threshold", "--model", str(out / "onnx"), "--threshold", "2"])  # the folder itself will do
    assert onnx_models.run(out / "onnx/self_stopping.onnx", feed)["exit_layer"].tolist() == [2]


def test_a_policy_that_no_graph_computes_is_refused_before_anything_is_traced(experiment: Path) -> None:
    (experiment / "policies/decode_learned.yaml").write_text("policy: posterior\npolicy_conf: {threshold: 0.5}\n")
    with pytest.raises(UserError, match="policy posterior.* fixed, entropy"):
        main(["export", "--model", str(experiment), "--out", str(experiment.parent / "out")])
    assert not (experiment.parent / "out/onnx").exists()


def test_what_searches_with_attention_decoders_is_not_exported(experiment: Path) -> None:
    searched = experiment / "policies/decode_decoder_a.yaml"
    searched.write_text("policy: decoder\npolicy_conf: {threshold: 0.2}\nsearch: {kind: attention}\n")
    out = experiment.parent / "out"
    with pytest.raises(UserError, match="searches with attention decoders, which are not exported"):
        main(["export", "--model", str(experiment), "--out", str(out), "--policy", str(searched)])
    main(["export", "--model", str(experiment), "--out", str(out)])
    assert [path.name for path in (out / "onnx").glob("decode_*")] == ["decode_entropy_a.yaml"]


def test_a_package_carries_what_was_exported_of_it_and_nothing_else(experiment: Path) -> None:
    pack = ["pack", "--model", str(experiment), "--name", "a/b", "--licence", "other", "--training_data", "noise"]
    main([*pack, "--out", str(experiment.parent / "bare")])
    assert not (experiment.parent / "bare/onnx").exists() and "onnx" not in (experiment.parent / "bare/README.md").read_text()
    main(["export", "--model", str(experiment), "--out", str(experiment), "--int8"])
    main([*pack, "--out", str(experiment.parent / "package")])
    packed = experiment.parent / "package/onnx"
    assert {path.name: path.read_bytes() for path in packed.iterdir()} == {
        path.name: path.read_bytes() for path in (experiment / "onnx").iterdir()
    }
    card = (experiment.parent / "package/README.md").read_text()
    (row,) = (line for line in card.splitlines() if line.startswith("|2|"))
    (head,) = (line for line in card.splitlines() if line.startswith("|exit|"))
    size = sum((packed / f"segment_{layer:02d}.int8.onnx").stat().st_size for layer in (1, 2))
    assert dict(zip(head.split("|"), row.split("|"), strict=True))["MB int8"] == f"{size / 1e6:.1f}"
    assert 'from_zipformer_ctc(model="onnx/self_stopping.int8.onnx"' in card
    # Trained on: what was exported before is another model.
    torch.save({name: value + 1 for name, value in torch.load(experiment / "model.pth").items()}, experiment / "model.pth")
    with pytest.raises(UserError, match="other parameters; export the model again"):
        main([*pack, "--out", str(experiment.parent / "package")])


def test_the_description_tells_the_compute() -> None:
    model = onnx_models.traced()[0]
    macs = yaml.safe_load(yaml.safe_dump(describe_model(model, 16000)["macs"]))
    blocks = {layer: tuple(Parabola(**numbers) for numbers in parabolas) for layer, parabolas in macs.pop("blocks").items()}
    heads = {layer: Parabola(**numbers) for layer, numbers in macs.pop("heads").items()}
    assert MacTable(front=tuple(macs.pop("front")), blocks=blocks, heads=heads, **macs) == mac_table(model)


@pytest.mark.parametrize(
    ("changes", "features"),
    [
        ({}, {"kind": "kaldi_fbank", "fs": 16000, "n_mels": 80}),
        ({"frontend": None, "input_size": 80}, {"kind": "extracted", "n_mels": 80}),
        (
            {"frontend": "default", "frontend_conf": {"fs": "16k", "hop_length": 160, "n_fft": 400}},
            {"kind": "default", "fs": 16000, "n_fft": 400, "win_length": 400, "hop_length": 160, "window": "hann",
             "center": True, "normalized": False, "n_mels": 80, "fmin": 0, "fmax": 8000, "htk": False, "log_base": None},
        ),
    ],
    ids=["kaldi_fbank", "extracted", "default"],
)  # fmt: skip
def test_the_description_tells_how_features_are_made(changes: dict, features: dict) -> None:
    assert describe_model(onnx_models.model(**onnx_models.settings(**changes)), 16000)["features"] == features


def test_tokens_are_written_as_sherpa_reads_them() -> None:
    assert token_lines(["<blank>", "<unk>", "<space>", "A"], 0) == ["<blank> 0", "<unk> 1", "▁ 2", "A 3"]
    assert token_lines(["<nothing>", "▁", "<space>"], 0) == ["<blk> 0", "▁ 1", "<space> 2"]


@pytest.mark.parametrize("stop", ["trace_segment", "write_model"])
def test_an_interrupted_export_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str) -> None:
    model = onnx_models.traced()[0]
    export_onnx(model, 16000, tmp_path, OnnxExport({}))
    before = {path.name: path.read_bytes() for path in (tmp_path / "onnx").iterdir()}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx_graphs, stop, interrupted)
    with torch.no_grad():
        model.ctc.ctc_lo.bias += 1.0
    try:
        with pytest.raises(KeyboardInterrupt):
            export_onnx(model, 16000, tmp_path, OnnxExport({}))
    finally:
        with torch.no_grad():
            model.ctc.ctc_lo.bias -= 1.0
    assert {path.name: path.read_bytes() for path in (tmp_path / "onnx").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


def test_what_is_no_export_stays(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx/thesis.tex").write_text("x")
    with pytest.raises(UserError, match="onnx"):
        export_onnx(onnx_models.traced()[0], 16000, tmp_path, OnnxExport({}))
    with pytest.raises(UserError, match="exit_layer 3: .* 1, 2"):
        export_onnx(onnx_models.traced()[0], 16000, tmp_path / "new", OnnxExport({}, exit_layers=[3]))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "words",
    [["--format", "stock"], ["--format", "stock", "--exit_layer", "1", "2"],
     ["--format", "stock", "--exit_layer", "1", "--int8"], ["--policy", "nowhere"]],
    ids=" ".join,
)  # fmt: skip
def test_options_that_do_not_fit_are_refused(experiment: Path, words: list[str]) -> None:
    with pytest.raises(UserError, match="--format stock|--policy nowhere"):
        main(["export", "--model", str(experiment), "--out", str(experiment.parent / "out"), *words])
    assert not (experiment.parent / "out").exists()


@pytest.mark.parametrize(
    "damage",
    [{"exit_layers": None}, {"exit_layers": []}, {"self_stopping": {"fp32": "self_stopping.onnx"}},
     {"self_stopping": {"fp32": "../model.onnx", "policy": {"policy": "entropy", "policy_conf": {"threshold": 1}}}}],
    ids=str,
)  # fmt: skip
def test_a_threshold_is_only_changed_where_an_export_has_one(tmp_path: Path, damage: dict) -> None:
    with pytest.raises(UserError, match=r"holds no exported model \(onnx/model.yaml\)"):
        main(["set-threshold", "--model", str(tmp_path), "--threshold", "1"])
    policy = {"policy": "entropy", "policy_conf": {"threshold": 0.2}}
    whole = {"exit_layers": [1, 2], "self_stopping": {"fp32": "self_stopping.onnx", "policy": policy}}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({**whole, **damage}))
    with pytest.raises(UserError, match=r"model.yaml: self_stopping or exit_layers is not what an export writes"):
        main(["set-threshold", "--model", str(tmp_path), "--threshold", "1"])
