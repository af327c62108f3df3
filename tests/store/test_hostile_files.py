"""Packages made to do harm: refused with one line, nothing executed, nothing written outside, no memory filled."""

import io
import os
import pickle
import resource
import stat
import struct
import zipfile

import numpy as np
import pytest
import torch
import yaml

from espnet_ee.errors import UserError
from espnet_ee.store import archive
from espnet_ee.store.archive import open_archive, write_archive
from espnet_ee.store.model_card import Card
from espnet_ee.store.package import load_package, open_package, pack_model
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


def refused(package, match: str) -> None:
    """The package is refused with one line, and nothing appears in its folder or beside it."""
    before = sorted(package.parent.rglob("*"))
    with pytest.raises(UserError, match=match):
        load_package(package)
    assert sorted(package.parent.rglob("*")) == before


def change(package, **changes) -> None:
    config = yaml.safe_load((package / "config.yaml").read_text())
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) and isinstance(config.get(key), dict) else value
    (package / "config.yaml").write_text(yaml.safe_dump(config))


def test_the_package_itself_loads(package):
    assert load_package(package).model.encoder.exit_layers == (1, 2, 4)


@pytest.mark.parametrize("write", ["torch", "pickle", "legacy"])
def test_a_pickle_with_a_payload(package, write):
    payload, path = Payload(package.parent / "pwned"), package / "model.pth"
    if write == "pickle":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save({"a": payload}, path, _use_new_zipfile_serialization=write == "torch")
    refused(package, "model.pth: not a file of tensors only, refused")


def test_statistics_with_a_payload(package):
    np.savez(package / "feats_stats.npz", count=np.array([Payload(package.parent / "pwned")], object), sum=0, sum_square=0)
    refused(package, "feats_stats.npz: not a file of statistics: .*allow_pickle")


def test_statistics_of_a_gigantic_declared_size(package):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**13,)})
    with zipfile.ZipFile(package / "feats_stats.npz", "w") as made:
        for name in ("count.npy", "sum.npy", "sum_square.npy"):
            made.writestr(name, header.getvalue())
    refused(package, "feats_stats.npz: not a file of statistics")


def test_statistics_that_unpack_to_much_more_than_themselves(package):
    np.savez_compressed(package / "feats_stats.npz", count=9, sum=np.zeros(80), sum_square=np.zeros(200_000))
    assert (package / "feats_stats.npz").stat().st_size < 10_000
    refused(package, r"feats_stats.npz: holds 16\d{5} bytes of statistics, more than 1048576, refused")


@pytest.mark.parametrize(
    ("count", "total", "squares"), [((), 30, (30, 1)), ((), (30, 30), (30, 30)), ((30, 1), 30, 30), ((), 30, 31)], ids=str
)
def test_statistics_of_shapes_that_multiply(package, count, total, squares):
    np.savez(package / "feats_stats.npz", count=np.ones(count), sum=np.ones(total), sum_square=np.ones(squares))
    refused(package, "feats_stats.npz: is not a count and two sums of one length, refused")


def test_statistics_of_an_unbounded_compression(package):
    with zipfile.ZipFile(package / "feats_stats.npz", "w", zipfile.ZIP_LZMA) as made:
        made.writestr("count.npy", b"")
    refused(package, "feats_stats.npz: is not compressed as numpy does it, refused")


def test_statistics_with_a_spoiled_directory(package):
    content = (package / "feats_stats.npz").read_bytes()
    (package / "feats_stats.npz").write_bytes(content.replace(b"PK\1\2", b"PK\1\3"))
    refused(package, "feats_stats.npz: not a file of statistics: ")


@pytest.mark.parametrize("file", ["config.yaml", "policies.yaml"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("!!python/object/apply:os.mkdir [pwned]", "not plain YAML"),
        ("token_list: !!python/object/apply:os.mkdir [pwned]", "not plain YAML"),
        ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]", "has YAML aliases, refused"),
        ("[" * 100000, "is nested deeper than 20, refused"),
        ("a: 9999-99-99", "not plain YAML"),
        ("- a", "not a table"),
        ("\x00", "not plain YAML"),
    ],
    ids=["tag", "nested tag", "aliases", "depth", "date", "list", "bytes"],
)
def test_yaml_that_is_not_plain(package, monkeypatch, file, text, message):
    monkeypatch.chdir(package)
    (package / file).write_text(text)
    refused(package, f"{file}: {message}")


def test_yaml_beyond_reason(package):
    (package / "config.yaml").write_text("#" * (5 << 20))
    refused(package, "larger than 4 MiB, refused")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder": None}, "encoder 'None' cannot be driven block by block"),
        ({"encoder": "os.system"}, "encoder 'os.system' cannot be driven block by block"),
        ({"encoder": ["os.system"]}, "encoder .* cannot be driven block by block"),
        ({"model": "tests.tiny.model"}, "model 'tests.tiny.model' is not allowed in a package"),
        ({"frontend": "s3prl"}, "frontend 's3prl' is not allowed"),
        ({"specaug": "os.system"}, "specaug 'os.system' is not allowed"),
        ({"decoder": "hugging_face_transformers"}, "decoder .* is not allowed"),
        ({"preencoder": "sinc"}, "preencoder 'sinc' is not allowed"),
        ({"init": "os.system"}, "init 'os.system' is not allowed"),
        ({"encoder_conf": {"input_layer": "os.system"}}, "input_layer 'os.system' cannot be used"),
        ({"encoder_conf": {"activation_type": "os.system"}}, "no model can be built from it"),
        ({"encoder": "early_exit_stock"}, "stock_encoder None is not allowed in a package; it may be multiconv_conformer"),
        ({"encoder": "early_exit_stock", "encoder_conf": {"stock_encoder": "wav2vec2"}}, "'wav2vec2' is not allowed"),
        ({"encoder_conf": "os.system"}, "encoder_conf is no table"),
        ({"token_list": "/etc/passwd"}, "token_list is no list"),
        ({"normalize_conf": {"stats_file": "/etc/passwd"}}, "'/etc/passwd' is not a file beside it, refused"),
        ({"normalize_conf": {"stats_file": "../../x.npz"}}, "is not a file beside it, refused"),
        ({"normalize_conf": 3}, "normalize_conf is no table"),
        ({"normalize_conf": {"stats_file": ""}}, "config.yaml: .: no such file"),
        ({"bpemodel": "../x.model"}, "is not a file beside it, refused"),
    ],
    ids=str,
)
def test_classes_and_files_that_a_package_may_not_name(package, changes, message):
    change(package, **changes)
    refused(package, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_conf": {"num_blocks": 10**9}}, "num_blocks 1000000000 is beyond"),
        ({"encoder_conf": {"num_blocks": 200}}, "has 4 blocks, config.yaml asks for 200"),
        ({"encoder_conf": {"multicgmlp_kernel_sizes": "1," * 10**5}}, "multicgmlp_kernel_sizes is longer than 100, refused"),
        ({"encoder_conf": {"output_size": 10**12}}, "output_size 1000000000000 is beyond"),
        ({"encoder_conf": {"output_size": 160000, "linear_units": 200000}}, "asks for"),
        ({"encoder_conf": {"exit_layers": [10**12]}}, "exit_layers 1000000000000 is beyond"),
        ({"frontend_conf": {"n_fft": 10**8}}, "n_fft 100000000 is beyond"),
        ({"frontend_conf": {"hop_length": float("nan")}}, "hop_length nan is beyond"),
        ({"frontend_conf": {"frontend_conf": {"use_wpe": True, "wlayers": 200}}}, "frontend_conf: wlayers 200 is beyond 16"),
        ({"frontend_conf": {"frontend_conf": {"use_beamformer": True, "bnmask": 200}}}, "bnmask 200 is beyond 16"),
        ({"input_size": 10**15}, "input_size 1000000000000000 is beyond"),
    ],
    ids=str,
)
def test_gigantic_sizes_in_the_configuration(package, changes, message):
    change(package, **changes)
    refused(package, message)


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
    refused(package, "no model can be built from it: ")


def test_a_tensor_larger_than_what_is_stored(package):
    state = torch.load(package / "model.pth", weights_only=True)
    state["ctc.ctc_lo.weight"] = torch.zeros(1).expand(10**6, 10**6)
    torch.save(state, package / "model.pth")
    refused(package, r"ctc.ctc_lo.weight of shape \(1000000, 1000000\) is larger than what is stored")


def test_a_checkpoint_that_unpacks_to_more_than_itself(package):
    with zipfile.ZipFile(package / "model.pth", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("archive/data.pkl", bytes(10_000_000))
    refused(package, "declares sizes beyond its own")


@pytest.mark.parametrize("kept", [0, 1, 100, 10000])
def test_a_checkpoint_cut_off(package, kept):
    content = (package / "model.pth").read_bytes()
    (package / "model.pth").write_bytes(content[:kept])
    refused(package, "model.pth: not a file of tensors only")


@pytest.mark.parametrize(
    "error", [KeyError("x"), IndexError("x"), AssertionError(), TypeError("x"), struct.error("x")], ids=repr
)
def test_whatever_torch_says_of_a_damaged_checkpoint(package, monkeypatch, error):
    def load(*_, **__):
        raise error

    monkeypatch.setattr(torch, "load", load)
    refused(package, "model.pth: not a file of tensors only, refused: ('?x|AssertionError)")


def spoiled_archive(path, member: zipfile.ZipInfo | str, content: bytes = b"x", copies: int = 1):
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("config.yaml", "a: 1")
        for _ in range(copies):
            made.writestr(member, content)
    return path


def link(name: str, mode: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = mode << 16
    return member


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("member", "copies", "message"),
    [
        ("../pwned", 1, "no plain file name"),
        ("/tmp/pwned", 1, "no plain file name"),
        ("sub/../../pwned", 1, "no plain file name"),
        ("..\\pwned", 1, "no plain file name"),
        ("sub/file", 1, "no plain file name"),
        ("..", 1, "no plain file name"),
        (".bashrc", 1, "no plain file name"),
        (link("model.pth", stat.S_IFLNK | 0o777), 1, "is a link or no file"),
        (link("model.pth", stat.S_IFIFO | 0o777), 1, "is a link or no file"),
        ("model.pth", 2, "is there twice"),
        ("config.yaml", 1, "is there twice"),
    ],
    ids=str,
)
def test_archive_members_that_would_leave_the_folder(tmp_path, member, copies, message):
    path = spoiled_archive(tmp_path / "a.zip", member, b"/etc/passwd", copies)
    (tmp_path / "out" / "in").mkdir(parents=True)
    with pytest.raises(UserError, match=f"a.zip: member .* {message}.*, refused"):
        open_archive(path, tmp_path / "out" / "in")
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["a.zip", "in", "out"]  # not even config.yaml


def test_an_archive_of_gigantic_declared_size(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_BYTES", 100)
    path = spoiled_archive(tmp_path / "a.zip", "model.pth", bytes(200))
    with pytest.raises(UserError, match="a.zip: declares more than 64 files or 0 GiB, refused"), open_package(path):
        pass


def test_an_archive_that_holds_more_than_it_declares(tmp_path):
    path = spoiled_archive(tmp_path / "a.zip", "model.pth", bytes(3000))
    content = path.read_bytes()
    small, large = (3000).to_bytes(4, "little"), (30).to_bytes(4, "little")
    path.write_bytes(content.replace(small + small, small + large))
    with pytest.raises(UserError, match="a.zip: "), open_package(path) as folder:
        load_package(folder)


@pytest.mark.parametrize("content", [b"", b"PK", b"\x1f\x8b\x08garbage", b"not an archive"])
def test_what_is_no_archive(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match="a.zip: not an archive"), open_package(tmp_path / "a.zip"):
        pass


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_that_could_fill_memory_by_its_compression(tmp_path, method):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as made:
        made.writestr("config.yaml", bytes(3000))
    with pytest.raises(UserError, match="member 'config.yaml' is compressed in another way"), open_package(path):
        pass


def test_an_archive_with_spoiled_bytes(tmp_path):
    path = spoiled_archive(tmp_path / "a.zip", "mödel.pth")
    content = path.read_bytes()
    (tmp_path / "name.zip").write_bytes(content.replace("ö".encode(), b"\xff\xff"))
    end = content.rindex(b"PK\5\6")
    (tmp_path / "place.zip").write_bytes(content[: end + 16] + b"\xff\xff\0\0" + content[end + 20 :])
    for name in ("name.zip", "place.zip"):
        with pytest.raises(UserError, match=f"{name}: not an archive"), open_package(tmp_path / name):
            pass


def test_a_full_disk_is_not_the_archives_fault(good, tmp_path):
    write_archive(good, tmp_path / "a.zip")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        (tmp_path / "out").mkdir()
        with pytest.raises(OSError, match="File too large"):
            open_archive(tmp_path / "a.zip", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_archive_comes_back_as_it_was(good, tmp_path):
    write_archive(good, tmp_path / "a.zip")
    with open_package(tmp_path / "a.zip") as folder:
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
            file.name: file.read_bytes() for file in good.iterdir()
        }
