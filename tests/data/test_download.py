"""Downloading from a local server: whole, resumed, checked, and unpacked without trusting the archive."""

from __future__ import annotations

import hashlib
import http.server
import io
import random
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from espnet_ee.data import download
from espnet_ee.data.download import Archive, download_parts, unpack
from espnet_ee.errors import UsageError, UserError
from espnet_ee.files import temporary_dir

MEMBERS = {"LibriSpeech/dev-clean/1/2/1-2.trans.txt": b"1-2-0 GO\n", "LibriSpeech/SPEAKERS.TXT": b"1 | F\n"}


def archive(members: dict[str, bytes], link: str | None = None) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo("LibriSpeech/dev-clean/link")
            info.type, info.linkname = tarfile.SYMTYPE, link
            tar.addfile(info)
    return stream.getvalue()


class Server:
    """Serves one archive under every name; may stop in the middle, and knows Range."""

    def __init__(self) -> None:
        self.content = archive(MEMBERS)
        self.ranges: list[str | None] = []
        self.stop_at: int | None = None
        self.knows_range = True
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.ranges.append(self.headers.get("Range"))
                wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
                start = int(wanted[1]) if wanted and outer.knows_range else 0
                if start >= len(outer.content):
                    self.send_error(416)
                    return
                body = outer.content[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: outer.stop_at])

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def publish(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Makes what it serves the published archive."""
        digest = hashlib.sha256(self.content).hexdigest()
        monkeypatch.setattr(download, "ARCHIVES", {"dev-clean": Archive(12, f"sha256:{digest}")})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Server()
    made.publish(monkeypatch)
    threading.Thread(target=made.server.serve_forever, args=(0.05,), daemon=True).start()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_part_is_there_afterwards_and_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (folder,) = download_parts(["dev-clean"], tmp_path, server.url)
    assert (folder / "1/2/1-2.trans.txt").read_bytes() == b"1-2-0 GO\n"
    assert (tmp_path / "LibriSpeech/SPEAKERS.TXT").is_file()
    download_parts(["dev-clean"], tmp_path, server.url)
    assert len(server.ranges) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"LibriSpeech"}
    assert {path.name for path in folder.parent.iterdir()} == {"dev-clean", "SPEAKERS.TXT"}


@pytest.mark.parametrize("knows_range", [True, False])
def test_a_broken_connection_is_resumed(knows_range: bool, server: Server, tmp_path: Path) -> None:
    server.stop_at, server.knows_range = 100, knows_range
    with pytest.raises(UserError, match="what has come is kept, run again to go on"):
        download_parts(["dev-clean"], tmp_path, server.url)
    assert (tmp_path / "dev-clean.tar.gz.part").stat().st_size == 100
    server.stop_at = None
    download_parts(["dev-clean"], tmp_path, server.url)
    assert server.ranges == [None, "bytes=100-"]


def test_a_complete_but_unchecked_file_is_checked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "dev-clean.tar.gz.part").write_bytes(server.content)
    (folder,) = download_parts(["dev-clean"], tmp_path, server.url)
    assert folder.is_dir()


def test_a_wrong_checksum_deletes_the_file(server: Server, tmp_path: Path) -> None:
    server.content = archive({**MEMBERS, "LibriSpeech/dev-clean/x": b"other"})
    with pytest.raises(UserError, match="its sha256 is .*, not .*; it was deleted"):
        download_parts(["dev-clean"], tmp_path, server.url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("evil", ["../evil", "LibriSpeech/../../evil"])
def test_paths_that_lead_out_are_refused(evil: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.content = archive({**MEMBERS, evil: b"x"})
    server.publish(monkeypatch)
    with pytest.raises(UserError, match="cannot be unpacked"):
        download_parts(["dev-clean"], tmp_path / "in", server.url)
    assert not list(tmp_path.rglob("evil")) and not (tmp_path / "in/LibriSpeech/dev-clean").exists()


@pytest.mark.parametrize("link", ["/etc/passwd", "../../../../x"])
def test_links_that_lead_out_are_refused(link: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.content = archive(MEMBERS, link)
    server.publish(monkeypatch)
    with pytest.raises(UserError, match="cannot be unpacked"):
        download_parts(["dev-clean"], tmp_path, server.url)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no archive", "cannot be unpacked"), (archive({"README": b"x"}), "has no LibriSpeech/dev-clean in it")],
    ids=["no archive", "another"],  # an archive's bytes hold the time
)
def test_useless_archives_are_named(
    content: bytes, message: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = content
    server.publish(monkeypatch)
    with pytest.raises(UserError, match=message):
        download_parts(["dev-clean"], tmp_path, server.url)


def test_an_archive_with_spoiled_bytes_is_named(tmp_path: Path) -> None:
    content = bytearray(archive({"LibriSpeech/dev-clean/1.flac": random.Random(0).randbytes(300_000)}))
    content[200_000:] = b"\xff" * len(content[200_000:])
    (tmp_path / "x.tar.gz").write_bytes(content)
    with pytest.raises(UserError, match="x.tar.gz: cannot be unpacked"):
        unpack(tmp_path / "x.tar.gz", tmp_path / "LibriSpeech" / "dev-clean")


def test_a_full_disk_is_not_the_archives_fault(
    tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    (tmp_path / "x.tar.gz").write_bytes(archive({"LibriSpeech/dev-clean/1.flac": bytes(5000)}))
    with full_disk(1000), pytest.raises(OSError, match="File too large"):
        unpack(tmp_path / "x.tar.gz", tmp_path / "LibriSpeech" / "dev-clean")
    assert not list((tmp_path / "LibriSpeech").iterdir())


def test_what_a_killed_unpacking_left_is_removed(server: Server, tmp_path: Path) -> None:
    with temporary_dir(tmp_path / "LibriSpeech" / "dev-clean") as folder:
        left = folder.with_name(re.sub(r"-\d+\.", "-4194305.", folder.name))  # no process has this number
    (left / "LibriSpeech").mkdir(parents=True)
    download_parts(["dev-clean"], tmp_path, server.url)
    assert not left.exists()


def test_file_urls_work_too(tmp_path: Path, server: Server) -> None:
    (tmp_path / "mirror" / "12").mkdir(parents=True)
    (tmp_path / "mirror/12/dev-clean.tar.gz").write_bytes(server.content)
    (folder,) = download_parts(["dev-clean"], tmp_path / "out", (tmp_path / "mirror").as_uri())
    assert folder.is_dir()


def test_no_network_and_no_such_part(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be downloaded"):
        download_parts(["dev-clean"], tmp_path, "http://127.0.0.1:9")
    for url in ("mirror.org/resources", "http://a b", "http://[::1/"):
        with pytest.raises(UserError, match="cannot be downloaded"):
            download_parts(["dev-clean"], tmp_path, url)
    with pytest.raises(UsageError, match="'dev' is not offered"):
        download_parts(["dev"], tmp_path)
