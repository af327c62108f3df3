"""Which recordings somebody means: files, folders of files, lists of files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from espnet_ee.data.datadir import read_wav_scp
from espnet_ee.errors import UserError
from espnet_ee.files import is_file, read_lines

SUFFIXES = (".aif", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".snd", ".sph", ".w64", ".wav")
"""Files that a folder is searched for; any other has to be named itself."""
LISTS = (".list", ".lst", ".txt")


@dataclass(frozen=True)
class AudioFile:
    """A recording: what it is called (its path as it was given, or the id of a wav.scp), and where it is."""

    name: str
    path: Path

    @property
    def stem(self) -> str:
        """A name without folders and suffix, and without blanks: for formats that want one word, and for files made of it."""
        return "_".join((self.path.stem if self.name == str(self.path) else self.name).split()) or "_"


def audio_files(word: str) -> Iterator[AudioFile]:
    """The recordings that a word of a command line means, in order.

    Args:
        word: an audio file, which need not be there; a folder, searched with all folders in it; a ``.scp`` of Kaldi; a
            ``.txt``, ``.lst`` or ``.list`` with a path a line.

    Raises:
        UserError: the folder or the list holds none, or cannot be read.
    """
    path = Path(word)
    if path.is_dir():
        found = [AudioFile(str(file), file) for file in sorted(_files_in(path))]
    elif path.suffix == ".scp" and is_file(path):
        found = [AudioFile(utt_id, Path(value)) for utt_id, value in read_wav_scp(path).items()]
    elif path.suffix in LISTS and is_file(path):
        found = [AudioFile(line, Path(line)) for line in read_lines(path) if line.strip()]
    else:
        found = [AudioFile(word, path)]
    if not found:
        raise UserError(f"{path}: holds no audio file ({', '.join(SUFFIXES)}); name the files, or another folder")
    yield from found


def _files_in(folder: Path) -> Iterator[Path]:
    """Files named as audio in a folder and all in it, linked ones, too, each folder once; a link to nowhere is one that cannot be read."""

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror}); mend its permissions, or name the files")

    seen = set[str]()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        folders.sort()
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(place, name) for name in names if Path(name).suffix.lower() in SUFFIXES)
