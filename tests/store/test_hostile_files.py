"""Packages made to do harm: refused with one line, nothing executed, nothing written outside, no memory filled."""

import io
import json
import os
import pickle
import resource
import struct
import zipfile

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from espnet_ee.errors import UserError
from espnet_ee.store.checkpoint import load_model
from espnet_ee.store.export_stock import export_stock
from espnet_ee.store.model_card import Card
from espnet_ee.store.package import load_package, pack_model
from espnet_ee.store.tensors import read_tensors
from tests import tiny


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    np.savez(folder / "feats_stats.npz", count=9, sum=np.arange(80.0), sum_square=np.arange(80.0) ** 2 + 9)
    settings = {"normalize": "global_mvn", "normalize_conf": {"stats_file": str(folder / "feats_stats.npz")}}
    paths = tiny.save(folder, tiny.model(**settings), **settings)
    return pack_model(*paths, folder / "package", Card("a/b", "other", "noise"))


@pytest.fixture
def package(good, tmp_path):
    """A package's folder to spoil."""
    folder = tmp_path / "package"
    folder.mkdir()
    for file in good.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture(autouse=True)
def little_memory():
    """Whatever asks for more than some GiB fails instead of filling the machine."""
    used = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (64 << 30, used[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, used)


def refused(package, *words: str) -> None:
    """The package is refused with a line that holds these words; nothing appears in its folder or beside it."""
    before = sorted(package.parent.rglob("*"))
    with pytest.raises(UserError) as refusal:
        load_package(package)
    for word in words:
        assert word in str(refusal.value)
    assert sorted(package.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "way", [load_model, lambda *files: export_stock(*files, 2, files[0].parent / "../out")], ids=["load", "export"]
)
def test_files_of_a_package_are_trusted_by_nobody(package, way):
    change(package, frontend="s3prl")
    with pytest.raises(UserError, match="config.yaml: frontend 's3prl'"):
        way(package / "config.yaml", package / "model.safetensors")


def change(package, **changes) -> None:
    config = yaml.safe_load((package / "config.yaml").read_text())
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) and isinstance(config.get(key), dict) else value
    (package / "config.yaml").write_text(yaml.safe_dump(config))


def test_the_package_itself_loads(package):
    assert load_package(package).model.encoder.exit_layers == (1, 2, 4)


@pytest.mark.parametrize("write", ["torch", "pickle", "legacy"])
def test_a_pickle_with_a_payload(package, write):
    """Under the package's own name, and as an experiment's checkpoint."""
    payload = Payload(package.parent / "pwned")
    for path in (package / "model.safetensors", package.parent / "model.pth"):
        if write == "pickle":
            path.write_bytes(pickle.dumps(payload, protocol=2))
        else:
            torch.save({"a": payload}, path, _use_new_zipfile_serialization=write == "torch")
    refused(package, "model.safetensors", "refused")
    with pytest.raises(UserError, match="model.pth.*refused"):
        read_tensors(package.parent / "model.pth")
    assert not (package.parent / "pwned").exists()


def test_statistics_with_a_payload(package):
    np.savez(package / "feats_stats.npz", count=np.array([Payload(package.parent / "pwned")], object), sum=0, sum_square=0)
    refused(package, "feats_stats.npz", "allow_pickle")
    assert not (package.parent / "pwned").exists()


def test_statistics_of_a_gigantic_declared_size(package):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)})
    with zipfile.ZipFile(package / "feats_stats.npz", "w") as made:
        for name in ("count.npy", "sum.npy", "sum_square.npy"):
            made.writestr(name, header.getvalue())
    refused(package, "feats_stats.npz")


def test_statistics_that_unpack_to_much_more_than_themselves(package):
    np.savez_compressed(package / "feats_stats.npz", count=9, sum=np.zeros(80), sum_square=np.zeros(200_000))
    assert (package / "feats_stats.npz").stat().st_size < 10_000
    refused(package, "feats_stats.npz", "1048576")


@pytest.mark.parametrize(
    ("count", "total", "squares"), [((), 30, (30, 1)), ((), (30, 30), (30, 30)), ((30, 1), 30, 30), ((), 30, 31)], ids=str
)
def test_statistics_of_shapes_that_multiply(package, count, total, squares):
    np.savez(package / "feats_stats.npz", count=np.ones(count), sum=np.ones(total), sum_square=np.ones(squares))
    refused(package, "feats_stats.npz", "one length")


def test_statistics_of_an_unbounded_compression(package):
    with zipfile.ZipFile(package / "feats_stats.npz", "w", zipfile.ZIP_LZMA) as made:
        made.writestr("count.npy", b"")
    refused(package, "feats_stats.npz", "compressed")


def test_statistics_with_a_spoiled_directory(package):
    content = (package / "feats_stats.npz").read_bytes()
    (package / "feats_stats.npz").write_bytes(content.replace(b"PK\1\2", b"PK\1\3"))
    refused(package, "feats_stats.npz")


@pytest.mark.parametrize("file", ["config.yaml", "package.yaml", "decode_quick.yaml"])
@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("!!python/object/apply:os.mkdir [pwned]", "not plain YAML"),
        ("token_list: !!python/object/apply:os.mkdir [pwned]", "not plain YAML"),
        ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]", "aliases"),
        ("[" * 100000, "deeper"),
        ("a: 9999-99-99", "not plain YAML"),
        ("- a", "key: value"),
        ("\x00", "not plain YAML"),
    ],
    ids=["tag", "nested tag", "aliases", "depth", "date", "list", "bytes"],
)
def test_yaml_that_is_not_plain(package, monkeypatch, file, text, word):
    monkeypatch.chdir(package)
    (package / file).write_text(text)
    refused(package, file, word)


@pytest.mark.parametrize(
    ("file", "text", "word"),
    [
        ("package.yaml", "format: 2", "format 2"),
        ("package.yaml", "default: quick", "format None"),
        ("package.yaml", "{format: 1, default: slow}", "slow"),
        ("package.yaml", "{format: 1, default: [quick]}", "default"),
        ("decode_quick.yaml", "policy: os.system", "os.system"),
        ("decode_quick.yaml", "{policy: entropy, policy_conf: {threshold: [1]}}", "threshold"),
        ("decode_quick.yaml", "{policy: fixed, policy_conf: {exit_layer: 3}}", "3"),
    ],
)
def test_descriptions_that_fit_nothing(package, file, text, word):
    (package / file).write_text(text)
    refused(package, file, word)


def test_yaml_beyond_reason(package):
    (package / "config.yaml").write_text("#" * (5 << 20))
    refused(package, "config.yaml", "4 MiB")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"encoder": None}, "encoder 'None'"),
        ({"encoder": "os.system"}, "encoder 'os.system'"),
        ({"encoder": ["os.system"]}, "encoder"),
        ({"encoder": "conformer"}, "encoder 'conformer'"),
        ({"model": "tests.tiny.model"}, "model 'tests.tiny.model'"),
        ({"frontend": "s3prl"}, "frontend 's3prl'"),
        ({"specaug": "os.system"}, "specaug 'os.system'"),
        ({"decoder": "hugging_face_transformers"}, "decoder"),
        ({"preencoder": "sinc"}, "preencoder 'sinc'"),
        ({"init": "os.system"}, "init 'os.system'"),
        ({"encoder_conf": {"input_layer": "os.system"}}, "input_layer 'os.system'"),
        ({"encoder_conf": {"activation_type": "os.system"}}, "no model can be built"),
        ({"encoder_conf": "os.system"}, "encoder_conf"),
        ({"token_list": "/etc/passwd"}, "token_list"),
        ({"normalize_conf": {"stats_file": "/etc/passwd"}}, "'/etc/passwd' is not a file beside it"),
        ({"normalize_conf": {"stats_file": "../../x.npz"}}, "is not a file beside it"),
        ({"normalize_conf": {"stats_file": "gone.npz"}}, "is not a file beside it"),
        ({"normalize_conf": {"stats_file": "x" * 5000}}, "stats_file"),
        ({"normalize_conf": {"stats_file": "a\0b"}}, "stats_file"),
        ({"normalize_conf": 3}, "normalize_conf"),
        ({"normalize_conf": {"stats_file": ""}}, "no such file"),
        ({"bpemodel": "../x.model"}, "is not a file beside it"),
        ({"bpemodel": 3}, "is not a file beside it"),
    ],
    ids=str,
)
def test_classes_and_files_that_a_package_may_not_name(package, changes, word):
    change(package, **changes)
    refused(package, "config.yaml", word)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoder_conf": {"num_blocks": 10**9}}, "num_blocks 1000000000"),
        ({"encoder_conf": {"num_blocks": 200}}, "has 4 blocks, config.yaml asks for 200"),
        ({"encoder_conf": {"multicgmlp_kernel_sizes": "1," * 10**5}}, "multicgmlp_kernel_sizes"),
        ({"encoder_conf": {"output_size": 10**12}}, "output_size 1000000000000"),
        ({"encoder_conf": {"output_size": 160000, "linear_units": 200000}}, "asks for"),
        ({"encoder_conf": {"exit_layers": [10**12]}}, "exit_layers 1000000000000"),
        ({"frontend_conf": {"n_fft": 10**8}}, "n_fft 100000000"),
        ({"frontend_conf": {"hop_length": float("nan")}}, "hop_length nan"),
        ({"frontend_conf": {"frontend_conf": {"use_wpe": True, "wlayers": 200}}}, "wlayers 200"),
        ({"frontend_conf": {"frontend_conf": {"use_beamformer": True, "bnmask": 200}}}, "bnmask 200"),
        ({"input_size": 10**15}, "input_size 1000000000000000"),
        ({**tiny.attention(), "decoder_conf": {"num_blocks": 250}}, "has 0 decoder blocks, config.yaml asks for 250"),
    ],
    ids=str,
)
def test_gigantic_sizes_in_the_configuration(package, changes, words):
    change(package, **changes)
    refused(package, words)


@pytest.mark.parametrize(
    "changes",
    [
        {"frontend_conf": {"fs": 0}},
        {"frontend_conf": {"fs": "x"}},
        {"frontend_conf": {"n_fft": 0}},
        {"encoder_conf": {"output_size": 0}},
        {"encoder_conf": {"attention_heads": 0}},
    ],
    ids=str,
)
def test_sizes_that_nothing_can_be_built_with(package, changes):
    change(package, input_size=None, frontend="default", **changes)
    refused(package, "config.yaml", "no model can be built from it: ")


def spoil(package, **tensors: dict | None) -> None:
    """Rewrites the header: the first tensor as it is told, its bytes as they were."""
    path = package / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header = {name: {**entry, **tensors.get("changes", {})} if name == FIRST else entry for name, entry in header.items()}
    header = {**header, **tensors.get("more", {})}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


FIRST = "ctc.ctc_lo.weight"  # (8, 16), 512 bytes


@pytest.mark.parametrize(
    "tensors",
    [
        {"changes": {"shape": [10**6, 10**6]}},
        {"changes": {"shape": [2**62, 2**62]}},
        {"changes": {"shape": [-1, 16]}},
        {"changes": {"data_offsets": [0, 10**15]}},
        {"changes": {"data_offsets": [512, 0]}},
        {"changes": {"data_offsets": [0, 512]}},
        {"changes": {"data_offsets": "os.system"}},
        {"changes": {"dtype": "os.system"}},
        {"changes": {"dtype": "F64"}},
        {"changes": {"dtype": "U8", "shape": [512]}},
        {"changes": {"dtype": "I32"}},
        {"changes": {"dtype": "F16", "shape": [16, 16]}},
        {"more": {"more": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}},
        {"more": {"more": {"dtype": "F32", "shape": [0, 2**62], "data_offsets": [0, 0]}}},
        {"more": {"more": "os.system"}},
    ],
    ids=str,
)
def test_headers_that_do_not_fit_what_is_stored(package, tensors):
    spoil(package, **tensors)
    refused(package, "model.safetensors")


@pytest.mark.parametrize(("dtype", "word"), [("I32", "I32"), ("U8", "model.safetensors"), ("I64", "whole numbers")])
def test_tensors_of_another_type(package, dtype, word):
    state = read_tensors(package / "model.safetensors")
    kinds = {"I32": torch.int32, "U8": torch.uint8, "I64": torch.int64}
    save_file({**state, FIRST: state[FIRST].to(kinds[dtype])}, package / "model.safetensors")
    refused(package, "model.safetensors", FIRST, word)


def test_a_header_beyond_reason(package):
    """Neither read nor parsed: a sparse file of that size costs nobody anything."""
    with (package / "model.safetensors").open("r+b") as stream:
        stream.write(struct.pack("<Q", 50 << 20))
        stream.truncate(60 << 20)
    refused(package, "model.safetensors", str(50 << 20))


def test_parameters_are_read_only_when_the_header_fits_the_configuration(package, monkeypatch):
    monkeypatch.setattr("espnet_ee.store.tensors.load_file", lambda path: pytest.fail("read"))
    change(package, encoder_conf={"linear_units": 25})
    refused(package, "model.safetensors", "shape")


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 8, b"\xff" * 100, b"{}", struct.pack("<Q", 2) + b"{}", struct.pack("<Q", 1) + b"["]
)
def test_what_is_no_safetensors_file(package, content):
    (package / "model.safetensors").write_bytes(content)
    refused(package, "model.safetensors")


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, 5000, -1])
@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_parameters_cut_off(package, name, kept):
    path = package / "model.safetensors"
    if name == "model.pth":
        torch.save(read_tensors(path), package.parent / name)
        path = package.parent / name
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=f"{name}.*refused") as refusal:
        read_tensors(path)
    assert "weights_only" not in str(refusal.value)


def test_a_package_that_is_none(package):
    for file in ("package.yaml", "config.yaml", "model.safetensors"):
        content = (package / file).read_bytes()
        (package / file).unlink()
        refused(package, file)
        (package / file).write_bytes(content)


def test_a_tensor_larger_than_what_is_stored(tmp_path):
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"model.pth: a of shape"):
        read_tensors(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "content", [{1: torch.zeros(1)}, {"a": torch.eye(2).to_sparse()}, {"a": torch.zeros(1, device="meta")}, {"a": 1}, [1]]
)
def test_tensors_that_are_no_models(tmp_path, content):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"model.pth: (not a model's parameters|damaged)"):
        read_tensors(tmp_path / "model.pth")


def test_a_checkpoint_that_unpacks_to_more_than_itself(tmp_path):
    with zipfile.ZipFile(tmp_path / "model.pth", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("archive/data.pkl", bytes(10_000_000))
    with pytest.raises(UserError, match="model.pth: declares"):
        read_tensors(tmp_path / "model.pth")


@pytest.mark.parametrize(
    "error", [KeyError("x"), IndexError("x"), AssertionError(), TypeError("x"), struct.error("x")], ids=repr
)
def test_whatever_torch_says_of_a_damaged_checkpoint(tmp_path, monkeypatch, error):
    def load(*_, **__):
        raise error

    torch.save({}, tmp_path / "model.pth")
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(UserError, match="model.pth"):
        read_tensors(tmp_path / "model.pth")


def test_a_file_that_may_not_be_read_is_not_damaged(tmp_path, monkeypatch):
    def load(*_, **__):
        raise PermissionError(13, "Permission denied", "model.pth")

    torch.save({}, tmp_path / "model.pth")
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(PermissionError):
        read_tensors(tmp_path / "model.pth")
