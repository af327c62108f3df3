"""The ``key value`` tables of Kaldi: ``wav.scp``, ``text``, ``utt2spk``, ``feats.scp`` and their like."""

from __future__ import annotations

from pathlib import Path

from espnet_ee.errors import UserError
from espnet_ee.files import atomic_write, read_lines

_DIGITS = 18  # what 64 bits hold


def read_scp(path: str | Path, allow_empty: bool = False) -> dict[str, str]:
    """Reads a Kaldi table: one ``key value`` a line, in the file's order.

    Args:
        path: the table (``wav.scp``, ``text``, ``utt2spk``, ...).
        allow_empty: whether a key may stand alone (an empty transcript).

    Raises:
        UserError: the file is missing or not UTF-8, or a line is empty, lacks its value or repeats a key.
    """
    path = Path(path)
    table: dict[str, str] = {}
    for number, line in enumerate(read_lines(path), 1):
        key, *rest = line.split(maxsplit=1) or [""]
        value = rest[0] if rest else ""
        if not key:
            raise UserError(f"{path}:{number}: empty line; delete it")
        if not value.strip() and not allow_empty:
            raise UserError(f"{path}:{number}: nothing follows the key {key!r}; complete or delete the line")
        if key in table:
            raise UserError(f"{path}:{number}: the key {key!r} was given before; keep one of the two lines")
        table[key] = value.strip()
    return table


def is_count(text: str) -> bool:
    """Whether it is a whole number in plain digits, of a size that things are counted in: Python reads no longer ones."""
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS


def split_place(value: str, where: str) -> tuple[str, int]:
    """Splits ``FILE:OFFSET`` of Kaldi's ``feats.scp``.

    Kaldi's tools hand a file that begins or ends with ``|`` to a shell, so nothing with that sign passes.

    Raises:
        UserError: it is something else; the message begins with ``where``.
    """
    file, _, offset = value.rpartition(":")
    if "|" in value:
        raise UserError(f"{where}: commands are not run; write the features into an archive and give FILE:OFFSET")
    if not file.strip() or not is_count(offset):
        raise UserError(f"{where}: {value!r} is not FILE:OFFSET of an archive; extract the features again")
    return file, int(offset)


def write_scp(path: str | Path, table: dict[str, str]) -> None:
    """Writes a Kaldi table sorted by key (in C locale order, as Kaldi's tools ask), atomically."""
    with atomic_write(path) as stream:
        for key in sorted(table):
            stream.write(f"{key} {table[key]}".rstrip() + "\n")
