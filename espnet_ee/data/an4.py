"""CMU AN4 (``an4_sphere.tar.gz``): spelled names, numbers and commands in SPHERE files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from espnet_ee.data.corpus import UNPACK, Corpus, Utterance
from espnet_ee.errors import UserError
from espnet_ee.files import is_file, read_lines

DEV_UTTERANCES = 100
"""The first so many of the sorted training utterances are ``train_dev``, as in ESPnet's recipe."""

_LINE = re.compile(r"^(?P<words>.*)\((?P<name>[^()\s]+)\)$")


class An4(Corpus):
    """AN4, cut into ESPnet's sets. An utterance is called ``SPEAKER-FILE``, e.g. ``fash-an251-fash-b``."""

    name = "an4"
    db_key = "AN4"
    known_sets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train_nodev": ("train",),
        "train_dev": ("train",),
        "test": ("test",),
    }

    def utterances(self, set_name: str) -> Iterator[Utterance]:
        (part,) = self.sets[set_name]
        read = sorted(self._read(self._base(), part), key=lambda utterance: utterance.utt_id)
        cuts = {"train_dev": slice(0, DEV_UTTERANCES), "train_nodev": slice(DEV_UTTERANCES, None)}
        yield from read[cuts.get(set_name, slice(None))]

    def _base(self) -> Path:
        return self.first_there([base / "etc" / "an4_train.fileids" for base in (self.root / "an4", self.root)]).parents[1]

    def _read(self, base: Path, part: str) -> Iterator[Utterance]:
        transcripts = base / "etc" / f"an4_{part}.transcription"
        file_ids = base / "etc" / f"an4_{part}.fileids"
        texts = read_transcription(transcripts)
        for number, line in enumerate(read_lines(file_ids, UNPACK), 1):
            audio = base / "wav" / f"{line}.sph"
            speaker, name = audio.parent.name, audio.stem
            if name not in texts:
                raise UserError(f"{file_ids}:{number}: {name!r} has no line in {transcripts}; unpack the corpus again")
            if not is_file(audio):
                raise UserError(f"{file_ids}:{number}: there is no {audio}; unpack the corpus again")
            yield Utterance(f"{speaker}-{name}", speaker, audio, texts.pop(name))
        if texts:
            raise UserError(f"{transcripts}: {next(iter(texts))!r} has no line in {file_ids}; unpack the corpus again")


def read_transcription(path: Path) -> dict[str, str]:
    """Reads ``<s> WORDS </s> (NAME)`` lines into name -> words.

    Raises:
        UserError: a line has another form, no words, or a name that stood before.
    """
    texts: dict[str, str] = {}
    for number, line in enumerate(read_lines(path, UNPACK), 1):
        match = _LINE.match(line.strip())
        words = [word for word in match["words"].split() if word not in ("<s>", "</s>")] if match else []
        if match is None or not words:
            raise UserError(f"{path}:{number}: not 'WORDS (NAME)': {line.strip()!r}; mend the line")
        if match["name"] in texts:
            raise UserError(f"{path}:{number}: {match['name']!r} was given before; keep one of the two lines")
        texts[match["name"]] = " ".join(words)
    return texts
