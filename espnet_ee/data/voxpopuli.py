"""VoxPopuli, the transcribed English part: ``transcribed_data/en/YEAR/ID.ogg`` with one ``asr_SET.tsv`` a set.

Source: arXiv 2101.00390; the layout is that of the corpus' own ``voxpopuli.get_asr_data``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from espnet_ee.data.corpus import Corpus, Utterance
from espnet_ee.data.skips import Skip
from espnet_ee.errors import UserError
from espnet_ee.files import is_file, read_lines

ROWS = {"train": 182482, "dev": 1753, "test": 1842}
"""Rows of the published tables; 16 of the training set's have no normalised text."""

COLUMNS = ("id", "normalized_text", "speaker_id", "split")
"""What is read. Beside them the tables have raw_text and gender, later ones also is_gold_transcript and accent."""

_NOBODY = ("", "None")
_ID = re.compile(r"[^\s/]{5,}")
_SPEAKER = re.compile(r"[^\s/]+")


class VoxPopuli(Corpus):
    """VoxPopuli in English, in its own sets, with its normalised text (lower case, numbers as words, no punctuation).

    An utterance is called ``SPEAKER-ID``; one whose speaker is not known is called as its file and is a speaker of its
    own. A training utterance without normalised text is skipped, and counted; in a set that is scored it stays, as one
    in which nothing is said.
    """

    name = "voxpopuli"
    db_key = "VOXPOPULI"
    known_sets: ClassVar[Mapping[str, tuple[str, ...]]] = {name: (name,) for name in ROWS}

    def utterances(self, set_name: str) -> Iterator[Utterance | Skip]:
        places = (self.root / "transcribed_data" / "en", self.root / "en", self.root)
        table = self.first_there([place / f"asr_{set_name}.tsv" for place in places])
        for where, row in read_table(table):
            if row["split"] != set_name:
                raise UserError(f"{where}: is of the set {row['split']!r}, not of {set_name!r}; make the tables again")
            utt_id, speaker = row["id"], row["speaker_id"]
            if speaker in _NOBODY:
                speaker = utt_id
            else:
                utt_id = f"{speaker}-{utt_id}"
            audio = table.parent / row["id"][:4] / f"{row['id']}.ogg"
            if not is_file(audio):
                raise UserError(f"{where}: there is no {audio}; cut the corpus' audio again")
            text = " ".join(row["normalized_text"].split())
            if not text and set_name == "train":
                yield Skip(utt_id, f"{where}: has no normalised text")
                continue
            yield Utterance(utt_id, speaker, audio, text)

    def distributed(self, set_name: str) -> int | None:
        return ROWS[set_name]


def read_table(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields the rows of a table, each with where it stands. Nothing is quoted: a quotation mark is one of the text.

    Raises:
        UserError: a column is missing, a row has more or fewer cells than the header, or a name cannot be that of a file.
    """
    lines = read_lines(path)
    header = lines[0].split("\t") if lines else []
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise UserError(f"{path}:1: has no column {missing[0]!r}; make the table again (python -m voxpopuli.get_asr_data)")
    for number, line in enumerate(lines[1:], 2):
        where, cells = f"{path}:{number}", line.split("\t")
        if len(cells) != len(header):
            raise UserError(f"{where}: has {len(cells)} cells, its header {len(header)}; mend the line")
        row = dict(zip(header, cells, strict=True))
        row = {name: row[name] if name == "normalized_text" else row[name].strip() for name in COLUMNS}
        if not _ID.fullmatch(row["id"]):
            raise UserError(f"{where}: the id {row['id']!r} is not YEAR... without blanks; mend the line")
        if row["speaker_id"] and not _SPEAKER.fullmatch(row["speaker_id"]):
            raise UserError(f"{where}: the speaker {row['speaker_id']!r} has a blank or a slash in it; mend the line")
        yield where, row
