"""The one writer of data directories: it leaves whole ones or none, and replaces none that somebody else wrote or changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from espnet_ee.data.datadir import Table, make_spk2utt, read_data_dir
from espnet_ee.errors import UserError
from espnet_ee.files import atomic_dir, atomic_write, file_digest
from espnet_ee.kaldi import read_scp, write_scp

MARK = ".made_by_espnet_ee"
"""In every directory of ours: the files at its top and their checksums. It may be replaced as long as they are the same."""

SOUNDS = "data"
"""The one folder in a directory of ours: audio or features."""


@dataclass
class DataDirDraft:
    """A data directory in the making: tables and notes are to be filled, other files are put into its folder."""

    folder: Path
    tables: dict[str, Table] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


@contextmanager
def new_data_dir(out: str | Path) -> Iterator[DataDirDraft]:
    """Makes a data directory that is checked and whole, or leaves what was at ``out`` untouched.

    The block fills the draft's tables; they are then written sorted, with spk2utt, checked by reading them, and renamed into place.

    Raises:
        UserError: ``out`` is something else than a data directory of ours, or what the block made is not valid.
    """
    out = Path(out)
    refuse_to_replace(out)
    with atomic_dir(out) as folder:
        draft = DataDirDraft(folder)
        yield draft
        for name, table in draft.tables.items():
            write_scp(folder / name, table)
        write_scp(folder / "spk2utt", make_spk2utt(draft.tables.get("utt2spk", {})))
        for name, text in draft.notes.items():
            with atomic_write(folder / name) as stream:
                stream.write(text)
        try:
            read_data_dir(folder)
        except UserError as error:
            raise UserError(str(error).replace(str(folder), str(out))) from None
        write_scp(folder / MARK, {path.name: file_digest(path, "sha256") for path in _files(folder)})


def refuse_to_replace(out: Path) -> None:
    """Raises UserError if something stands at ``out`` that we did not make, or that was corrected since: it would be lost."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    remedy = "move it away or give another folder"
    if not (out / MARK).is_file():
        raise UserError(f"{out}: exists and was not made by this command; {remedy}")
    other = next((path for path in sorted(out.iterdir()) if path.is_dir() and path.name != SOUNDS), None)
    if other is not None:
        raise UserError(f"{other}: was put into {out}, and would be lost; {remedy}")
    checksums = read_scp(out / MARK)
    for path in _files(out):
        if checksums.get(path.name) != file_digest(path, "sha256"):
            raise UserError(f"{path}: was changed or added after {out} was made, and would be lost; {remedy}")


def _files(folder: Path) -> list[Path]:
    """The files at the top of a data directory: its tables and notes. Hidden ones are marks of commands."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
