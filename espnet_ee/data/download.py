"""LibriSpeech over the network: resumed where it stopped, checked by its checksum, unpacked without trusting the archive."""

from __future__ import annotations

import http.client
import shutil
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

from espnet_ee.errors import UsageError, UserError, is_mendable
from espnet_ee.files import file_digest, temporary_dir

BASE_URL = "https://www.openslr.org/resources"
CHUNK = 1 << 20


class Archive(NamedTuple):
    """A part of the corpus as it is offered: its folder below the base URL, and ``ALGORITHM:HEXADECIMAL`` as published."""

    resource: int
    checksum: str


ARCHIVES = {
    "dev-clean": Archive(12, "sha256:76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
    "dev-other": Archive(12, "sha256:12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365"),
    "test-clean": Archive(12, "sha256:39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"),
    "test-other": Archive(12, "sha256:d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29"),
    "train-clean-100": Archive(12, "sha256:d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"),
    "train-clean-360": Archive(12, "sha256:146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf"),
    "train-other-500": Archive(12, "sha256:ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2"),
    "dev-clean-2": Archive(31, "md5:6d7ab67ac6a1d2c993d050e16d61080d"),
    "train-clean-5": Archive(31, "md5:5df7d4e78065366204ca6845bb08f490"),
}


def download_parts(parts: Sequence[str], out: Path, base_url: str = BASE_URL) -> list[Path]:
    """Makes ``out/LibriSpeech/PART`` for every part that is not there yet; returns the folders.

    Args:
        parts: names such as ``train-clean-100``.
        out: where to unpack; archives are kept beside it until they are unpacked.
        base_url: a mirror of openslr.org's ``resources`` folder.

    Raises:
        UserError: the network fails (what has come stays, a second run goes on), or an archive is not what was
            published, or it holds paths that lead out of it.
    """
    for part in parts:
        if part not in ARCHIVES:
            raise UsageError(f"--parts: {part!r} is not offered; choose from {' '.join(ARCHIVES)}")
    folders = []
    for part in parts:
        folder = out / "LibriSpeech" / part
        if not folder.is_dir():
            resource, checksum = ARCHIVES[part]
            archive = fetch(f"{base_url}/{resource}/{part}.tar.gz", out, checksum)
            unpack(archive, folder)
            archive.unlink()
        folders.append(folder)
    return folders


def fetch(url: str, folder: Path, checksum: str) -> Path:
    """Downloads a file into a folder, going on where an earlier attempt stopped; returns its path.

    Raises:
        UserError: it cannot be reached or comes incomplete, or its checksum is another (it is then deleted).
    """
    target = folder / url.rpartition("/")[2]
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.part")
    try:
        _append(url, partial)
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: what is no URL at all
        raise UserError(f"{url}: cannot be downloaded ({error}); what has come is kept, run again to go on") from None
    algorithm, _, wanted = checksum.partition(":")
    found = file_digest(partial, algorithm)
    if found != wanted:
        partial.unlink()
        raise UserError(f"{url}: its {algorithm} is {found}, not {wanted}; it was deleted, run again or take a mirror")
    partial.replace(target)
    return target


def _append(url: str, partial: Path) -> None:
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=60)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to send: all of it is here
            return
        raise
    with response:
        # Whoever does not know Range (a file:// URL, some servers) sends all of it again.
        resumed = have > 0 and getattr(response, "status", None) == 206
        expected = int(response.headers.get("Content-Length") or 0) + (have if resumed else 0)
        with partial.open("ab" if resumed else "wb") as stream:
            _copy(response, stream)
    size = partial.stat().st_size
    if expected and size != expected:
        raise OSError(f"{size} of {expected} bytes came")


def _copy(response: IO[bytes], stream: IO[bytes]) -> None:
    done = 0
    while chunk := response.read(CHUNK):
        stream.write(chunk)
        done += len(chunk)
        if done % (256 * CHUNK) < len(chunk):
            print(f"download: {done >> 20} MiB", file=sys.stderr, flush=True)


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks ``LibriSpeech/PART`` of an archive to ``folder``, whole or not at all.

    Raises:
        UserError: the archive is damaged, has no such folder, or holds links or paths that lead out of it.
    """
    with temporary_dir(folder) as temporary:
        try:
            with tarfile.open(archive) as stream:
                stream.extractall(temporary, filter="data")
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            if isinstance(error, OSError) and is_mendable(error):
                raise  # the archive is good, and hours of loading: it must not be deleted
            raise UserError(f"{archive}: cannot be unpacked ({error}); delete it and run again") from None
        made = temporary / "LibriSpeech" / folder.name
        if not made.is_dir():
            raise UserError(f"{archive}: has no LibriSpeech/{folder.name} in it; delete it and run again")
        for note in made.parent.glob("*.TXT"):
            shutil.copyfile(note, folder.parent / note.name)
        made.rename(folder)
