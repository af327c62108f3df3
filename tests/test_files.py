"""Files are whole or not there; tables tell the line that is wrong."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from espnet_ee import files
from espnet_ee.data.audio import read_any
from espnet_ee.errors import UserError
from espnet_ee.files import atomic_dir, atomic_write, read_lines
from espnet_ee.kaldi import read_scp, write_scp
from espnet_ee.runtime.onnx_file import read_signature
from espnet_ee.store.tensors import read_tensors


def test_atomic_write_replaces_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    for text in ("old and long", "new"):
        with atomic_write(path) as stream:
            stream.write(text)
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["file"]


def test_atomic_write_obeys_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "file"):
            pass
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_atomic_write_keeps_the_old_file_when_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as stream:
        stream.write("half")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_atomic_write_takes_the_longest_name_that_the_system_takes(tmp_path: Path) -> None:
    for name in ("x" * 255, "ü" * 127):
        with atomic_write(tmp_path / name) as stream:
            stream.write("a")
        assert (tmp_path / name).read_text() == "a"


def test_a_full_disk_says_for_which_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, atomic_write(tmp_path / "a"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.filename == str(tmp_path / "a") and not list(tmp_path.iterdir())


def test_atomic_dir_replaces_whole(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with atomic_dir(tmp_path / "dir") as folder:
            (folder / name).touch()
    assert os.listdir(tmp_path / "dir") == ["new"]
    assert os.listdir(tmp_path) == ["dir"]


def test_atomic_dir_keeps_the_old_one_when_interrupted(tmp_path: Path) -> None:
    with atomic_dir(tmp_path / "dir") as folder:
        (folder / "old").touch()
    with pytest.raises(RuntimeError), atomic_dir(tmp_path / "dir") as folder:
        (folder / "half").touch()
        raise RuntimeError
    assert os.listdir(tmp_path / "dir") == ["old"]
    assert os.listdir(tmp_path) == ["dir"]


@pytest.mark.parametrize("exists", [True, False])
def test_atomic_dir_follows_a_link(exists: bool, tmp_path: Path) -> None:
    if exists:
        (tmp_path / "disk" / "real").mkdir(parents=True)
        (tmp_path / "disk" / "real" / "old").touch()
    (tmp_path / "link").symlink_to("disk/real")
    with atomic_dir(tmp_path / "link") as folder:
        assert folder.parent == tmp_path / "disk"
        (folder / "new").touch()
    assert os.readlink(tmp_path / "link") == "disk/real"
    assert os.listdir(tmp_path / "link") == ["new"]
    assert {*os.listdir(tmp_path)} == {"disk", "link"} and os.listdir(tmp_path / "disk") == ["real"]


HALF_WRITTEN = """
import os, signal, sys
from espnet_ee.files import atomic_dir
with atomic_dir(sys.argv[1]) as folder:
    (folder / "half").touch()
    print("ready", flush=True)
    if sys.argv[2] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.readline()
"""


def half_written(path: Path, fate: str) -> subprocess.Popen[bytes]:
    """A process in the middle of an atomic_dir."""
    process = subprocess.Popen(
        [sys.executable, "-c", HALF_WRITTEN, str(path), fate], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    return process


def test_atomic_dir_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    with half_written(tmp_path / "dir", "die") as killed:
        killed.wait()
    (tmp_path / ".dir.elsewhere-1.x.tmp").mkdir()  # of another host: its process may live
    with half_written(tmp_path / "dir", "wait") as living:
        kept = {*os.listdir(tmp_path)}
        assert len(kept) == 2, "the killed process' folder is still there"
        with atomic_dir(tmp_path / "dir") as folder:
            (folder / "whole").touch()
        assert {*os.listdir(tmp_path)} == {*kept, "dir"}
        living.communicate(b"\n")
    assert {*os.listdir(tmp_path)} == {"dir", ".dir.elsewhere-1.x.tmp"}


def test_scp_is_written_sorted_and_read_back(tmp_path: Path) -> None:
    write_scp(tmp_path / "t", {"b": "2 x", "B": "1", "a": "Ä"})
    assert (tmp_path / "t").read_text(encoding="utf-8") == "B 1\na Ä\nb 2 x\n"
    assert read_scp(tmp_path / "t") == {"B": "1", "a": "Ä", "b": "2 x"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a 1\nb\n", r":2: nothing follows the key 'b'"),
        (b"a 1\n\nb 2\n", r":2: empty line"),
        (b"a 1\nb 2\na 3\n", r":3: the key 'a' was given before"),
        (b"a 1\nb \xff\n", r":2: not UTF-8"),
        (b"a 1\nb \0\n", r":2: holds a NUL sign"),
    ],
)
def test_scp_error_names_the_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_scp(tmp_path / "t")


def test_scp_may_allow_empty_values(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("a\nb x\n")
    assert read_scp(tmp_path / "t", allow_empty=True) == {"a": "", "b": "x"}


def test_missing_scp_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; check the path, or run the stage"):
        read_scp(tmp_path / "t")


def test_tabs_separate_too(tmp_path):
    (tmp_path / "t").write_text("a\tx y\n")
    assert read_scp(tmp_path / "t") == {"a": "x y"}


def test_the_old_folder_is_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    (tmp_path / "d").mkdir()
    (tmp_path / "d/old").write_text("old")
    rename, calls = Path.rename, []

    def fail_second(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError("disk gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(OSError, match="disk gone"), atomic_dir(tmp_path / "d") as folder:
        (folder / "new").write_text("new")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["d", "d/old"]


def test_a_folder_in_the_place_of_a_file_is_named_itself(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(IsADirectoryError) as caught, atomic_write(tmp_path / "out") as stream:
        stream.write("x")
    assert caught.value.filename == str(tmp_path / "out") and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
@pytest.mark.parametrize(
    "text", ["[" * 100000, "a: 9999-99-99", "a: [", "!!python/name:os.system", "a: \x07", "a: 1" + "0" * 5000], ids=len
)
def test_yaml_that_is_not_plain_is_refused_by_either_loader(monkeypatch, loader, text):
    monkeypatch.setattr(files, "_Loader", getattr(yaml, loader))
    with pytest.raises(yaml.YAMLError):
        files.parse_yaml(text)


def test_both_loaders_read_the_same(monkeypatch):
    text = yaml.safe_dump(
        {"token_list": ["<blank>", "▁É", "yes", "1e-3", "~", "'", "#", " x", "😀", "\x85"], "lr": 1.0e-3, "a": [{"b": None}]},
        allow_unicode=True,
    )
    monkeypatch.setattr(files, "_Loader", yaml.SafeLoader)
    assert files.parse_yaml(text) == yaml.safe_load(text)
    monkeypatch.setattr(files, "_Loader", yaml.CSafeLoader)
    assert files.parse_yaml(text) == yaml.safe_load(text)
    assert files.parse_yaml("a: &a [1]\nb: *a") == {"a": [1], "b": [1]}
    with pytest.raises(yaml.YAMLError, match="aliases"):
        files.parse_yaml("a: &a [1]\nb: *a", aliases=False)


@pytest.mark.parametrize("loader", [yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)])
def test_a_key_that_is_there_twice_is_refused_by_either_loader(monkeypatch, loader):
    monkeypatch.setattr(files, "_Loader", loader)
    for text in ("a: 1\nb: 2\na: 3", "- {a: {b: 1, b: 1}}", "x: &x {a: 1, a: 2}\ny: *x"):
        with pytest.raises(yaml.YAMLError, match="is there twice"):
            files.parse_yaml(text)
    # Two keys, the same key in two tables, an anchor within itself, aliases of aliases.
    assert files.parse_yaml("\ufeffa: é\r\nb: 2\r\n") == {"a": "é", "b": 2}  # as Windows saves it
    assert files.parse_yaml("{1: a, '1': b, x: {a: 1}, y: {a: 1}}") == {1: "a", "1": "b", "x": {"a": 1}, "y": {"a": 1}}
    files.parse_yaml("a: &a {b: *a}")
    files.parse_yaml("".join(f"x{n}: &x{n} [{f'*x{n - 1}, ' * 9 if n else ''}]\n" for n in range(15)))


@pytest.mark.parametrize(
    "content", ["version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "/annex/objects/SHA256E-x\n"]
)
@pytest.mark.parametrize("name", ["a.wav", "model.safetensors", "model.pth", "segment_02.onnx"])
def test_a_file_that_is_not_fetched_is_called_so(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    readers = {".wav": lambda path: read_any(path, 16000), ".onnx": read_signature}
    with pytest.raises(UserError, match=f"{name}: a pointer of Git LFS or git-annex"):
        readers.get((tmp_path / name).suffix, read_tensors)(tmp_path / name)


def test_lines_of_what_is_no_file_are_refused_in_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / ("a" * 300)):
        with pytest.raises(UserError, match="cannot be read"):
            read_lines(path)
