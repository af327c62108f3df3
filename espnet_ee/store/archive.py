"""Archives of packages: zip files of plain files in one folder. Opening one from a stranger writes nothing elsewhere."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
import zlib
from pathlib import Path

from espnet_ee.errors import UserError, is_mendable
from espnet_ee.files import atomic_write

MAX_BYTES = 8 << 30  # no speech model for small devices comes near
MAX_FILES = 64
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # the same package gives the same bytes


def write_archive(folder: str | Path, path: str | Path) -> None:
    """Writes the files of a folder (not its folders) as one archive, atomically; the same files give the same bytes."""
    with atomic_write(path, "wb") as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(Path(folder).iterdir()):
            info = zipfile.ZipInfo(file.name, _FIXED_TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            with file.open("rb") as source, archive.open(info, "w", force_zip64=True) as target:
                shutil.copyfileobj(source, target)


def open_archive(path: str | Path, folder: str | Path) -> None:
    """Writes an archive's files into an existing folder; all names and sizes are checked before the first is written.

    Raises:
        UserError: no such file, no zip archive, or a member that is a link, lies outside the folder, is too large or
            is larger than it says.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            _check(members, path)
            for member in members:
                _write(archive, member, Path(folder) / member.filename, path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError, OSError) as error:
        if isinstance(error, OSError) and is_mendable(error):
            raise
        raise UserError(f"{path}: not an archive that espnet_ee.bin.pack made: {error}") from None


def _check(members: list[zipfile.ZipInfo], path: str | Path) -> None:
    if len(members) > MAX_FILES or sum(member.file_size for member in members) > MAX_BYTES:
        raise UserError(f"{path}: declares more than {MAX_FILES} files or {MAX_BYTES >> 30} GiB, refused")
    names = [member.filename for member in members]
    for member in members:
        # zipfile unpacks the other methods without a bound: a block of one MiB may fill some GiB of memory.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UserError(f"{path}: member {member.filename!r} is compressed in another way than by deflate, refused")
        name, mode = member.filename, member.external_attr >> 16
        if name != os.path.basename(name) or "\\" in name or name.startswith(".") or not name.isprintable() or not name:
            raise UserError(f"{path}: member {name!r} is no plain file name, refused")
        if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise UserError(f"{path}: member {name!r} is a link or no file, refused")
        if names.count(name) > 1:
            raise UserError(f"{path}: member {name!r} is there twice, refused")


def _write(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, path: str | Path) -> None:
    left = member.file_size
    with archive.open(member) as source, target.open("xb") as stream:
        while block := source.read(1 << 20):
            left -= len(block)
            if left < 0:
                raise UserError(f"{path}: member {member.filename!r} is larger than it says, refused")
            stream.write(block)
