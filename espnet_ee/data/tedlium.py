"""TED-LIUM, releases 2 and 3: whole talks in ``sph/TALK.sph`` and their segments in ``stm/TALK.stm``."""

from __future__ import annotations

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import ClassVar

from espnet_ee.data.audio import count_samples
from espnet_ee.data.clip import Span, parse_span, to_samples
from espnet_ee.data.corpus import Corpus, Utterance
from espnet_ee.data.skips import Skip
from espnet_ee.errors import UserError
from espnet_ee.files import read_lines

IGNORED = "ignore_time_segment_in_scoring"
SCORED_SEGMENTS = {"dev": 507, "test": 1155}
"""The same in releases 2 and 3."""

OVERLAP_SECONDS = Decimal("0.5")
"""A training segment that overlaps the one before it by more than this holds words that its text does not have."""

_TIME = re.compile(r"^-?\d{1,9}(\.\d{1,9})?$", re.ASCII)
_CLITICS = frozenset(("'s", "'re", "'ve", "'ll", "'d", "'m", "'t"))
_ELIDED = frozenset("dloy")
"""Words only before an apostrophe: d'accord, l'oreal, o'clock, y'all."""
_LABEL = re.compile(r"^<[^<>\s]*>$")
_PRONUNCIATION = re.compile(r"\(\d+\)")
_UNSPOKEN = re.compile(r"^(<sil>|<unk>|\{[^{}]*\}|\[[^\[\]]*\])$")
_REMARK = re.compile(r"(^|\s)\([^()]*\)\s*$")
_CENTISECONDS = 100


def plain_text(text: str) -> str:
    """The words that are spoken. Nothing here drops a segment: one without words keeps an empty text.

    >>> plain_text("it 's the(2) <sil> 'cause {SMACK} <unk> of me (Talk-1-2)")
    "it's the 'cause of me"
    """
    words: list[str] = []
    for word in _PRONUNCIATION.sub("", _REMARK.sub("", text)).split():
        if _UNSPOKEN.match(word):
            continue
        if words and (word in _CLITICS or (word.startswith("'") and words[-1] in _ELIDED)):
            words[-1] += word
        else:
            words.append(word)
    return " ".join(words)


def espnet_text(text: str) -> str:
    """What ESPnet's recipe makes of it: every word that begins with an apostrophe joined, ``<unk>`` kept as ``[unk]``.

    >>> espnet_text("it 's the 'cause {SMACK} <unk>")
    "it's the'cause [SMACK] [unk]"
    """
    text = re.sub(r"\([0-9]\)", "", text).replace("<sil>", "")
    words = [""]  # the column before the text: a first word with an apostrophe is joined to it, and so lost
    joined = False  # a word joined to another takes no further one
    for word in re.sub(r"\([^ ]*\)$", "", text).split():
        if word.startswith("'") and not joined:
            words[-1] += word
        else:
            words.append(word)
        joined = word.startswith("'") and not joined
    return " ".join(words[1:]).translate(str.maketrans("{}<>", "[][]"))


TEXT_RULES: dict[str, Callable[[str], str]] = {"plain": plain_text, "espnet": espnet_text}


@dataclass(frozen=True)
class _Line:
    """A segment's line of an STM file; its times are read, but not checked yet."""

    where: str
    talk: str
    start: str
    end: str
    text: str


class TedLium3(Corpus):
    """TED-LIUM 3. Dev and test are those of the earlier releases (``legacy``), and all their segments are scored.

    An utterance is called ``TALK-START-END`` in hundredths of a second, as in ESPnet's recipe, but rounded; a line that
    is there twice stays there twice. The speaker is the talk.
    """

    name = "tedlium3"
    db_key = "TEDLIUM3"
    folder_name: ClassVar[str] = "TEDLIUM_release-3"
    known_sets: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train": ("legacy/train", "data"),  # two names of the same talks: the first that is there
        "dev": ("legacy/dev",),
        "test": ("legacy/test",),
    }
    known_options: ClassVar[Mapping[str, tuple[str, ...]]] = {"text_rules": tuple(TEXT_RULES)}

    def utterances(self, set_name: str) -> Iterator[Utterance | Skip]:
        rules = self.options.get("text_rules", "plain")
        seen: Counter[str] = Counter()
        folder = self._folder(set_name)
        talks = sorted((folder / "stm").glob("*.stm"))
        if not talks:
            raise UserError(f"{folder / 'stm'}: no .stm files in it; unpack the corpus again")
        self._check_all_have_text(folder)
        for stm in talks:
            lines = _segments(stm)
            if rules == "espnet":
                lines = _without_repeats(lines)
            yield from _read_talk(folder, lines, rules, set_name == "train", seen)

    def distributed(self, set_name: str) -> int | None:
        plain = self.options.get("text_rules", "plain") == "plain"  # ESPnet's rules leave repeated lines out
        return SCORED_SEGMENTS.get(set_name) if plain else None

    def lm_sentences(self) -> Iterator[str]:
        """The sentences of ``LM/*.en.gz``, by the rules of the transcripts."""
        base = self._folder("dev").parent
        files = sorted((base if (base / "LM").is_dir() else base.parent).glob("LM/*.en.gz"))
        if not files:
            raise UserError(f"{base / 'LM'}: no *.en.gz in it; unpack the corpus again or make no LM text")
        for path in files:
            for line in _unzipped(path):
                sentence = plain_text(line.replace("</s>", " ").replace("<s>", " ").strip())
                if sentence:
                    yield sentence

    def _folder(self, set_name: str) -> Path:
        bases, parts = (self.root / self.folder_name, self.root), self.known_sets[set_name]
        return self.first_there([base / part / "stm" for base in bases for part in parts]).parent

    def _check_all_have_text(self, folder: Path) -> None:
        for audio in sorted((folder / "sph").glob("*.sph")):
            if not (folder / "stm" / f"{audio.stem}.stm").is_file():
                raise UserError(f"{audio}: there is no {folder / 'stm' / audio.stem}.stm; unpack the corpus again")


class TedLium2(TedLium3):
    """TED-LIUM 2: the same files, one folder a set."""

    name = "tedlium2"
    db_key = "TEDLIUM2"
    folder_name: ClassVar[str] = "TEDLIUM_release2"
    known_sets: ClassVar[Mapping[str, tuple[str, ...]]] = {name: (name,) for name in ("train", "dev", "test")}


def _unzipped(path: Path) -> Iterator[str]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            yield from stream
    except (gzip.BadGzipFile, zlib.error, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as zipped UTF-8 ({error}); unpack the corpus again") from None


def _segments(stm: Path) -> list[_Line]:
    """The lines that are segments, by talk and time."""
    lines = []
    for number, line in enumerate(read_lines(stm), 1):
        where = f"{stm}:{number}"
        words = line.split(maxsplit=6)
        if line.startswith(";;") or IGNORED in line:
            continue
        if len(words) < 6 or not _LABEL.match(words[5]):
            raise UserError(f"{where}: not 'TALK CHANNEL SPEAKER START END <LABEL> WORDS'; correct the line")
        if words[0] != stm.stem:
            raise UserError(f"{where}: is of the talk {words[0]!r}, not of {stm.stem!r}; move the line to its file")
        for time in words[3:5]:
            if not _TIME.match(time):
                raise UserError(f"{where}: {time!r} is not a time in seconds; correct the line")
        lines.append(_Line(where, words[0], words[3], words[4], words[6] if len(words) > 6 else ""))
    return sorted(lines, key=lambda line: (line.talk, float(line.start)))


def _without_repeats(lines: list[_Line]) -> list[_Line]:
    """ESPnet's recipe leaves out a line that is equal to the one before it."""
    return [next(same) for _, same in groupby(lines, key=lambda line: replace(line, where=""))]


def _read_talk(folder: Path, lines: list[_Line], rules: str, training: bool, seen: Counter[str]) -> Iterator[Utterance | Skip]:
    before: Span | None = None
    length: tuple[int, int] | None = None
    for line in lines:
        audio = folder / "sph" / f"{line.talk}.sph"
        if not audio.is_file():
            raise UserError(f"{line.where}: there is no {audio}; unpack the corpus again")
        length = length or count_samples(audio)
        utt_id = _utt_id(line, rules, seen)
        try:
            span = parse_span(line.start, line.end, line.where)
            span.samples(length[1], length[0], line.where)
            # A set that is scored keeps every segment; a line that is there twice is meant twice.
            if training and before not in (None, span) and before.end - span.start > OVERLAP_SECONDS:
                raise UserError(f"{line.where}: overlaps the segment before it, which ends at {before.end} s")
        except UserError as error:
            yield Skip(utt_id, str(error))
            continue
        before = span
        yield Utterance(utt_id, line.talk, audio, TEXT_RULES[rules](line.text), span)


def _utt_id(line: _Line, rules: str, seen: Counter[str]) -> str:
    if rules == "espnet":  # truncated, and in binary fractions, as awk does it
        start, end = (int(float(time) * _CENTISECONDS) for time in (line.start, line.end))
    else:
        start, end = (to_samples(Decimal(time), _CENTISECONDS) for time in (line.start, line.end))
    utt_id = f"{line.talk}-{start:07d}-{end:07d}"
    seen[utt_id] += 1
    return utt_id if seen[utt_id] == 1 else f"{utt_id}-{seen[utt_id]}"
