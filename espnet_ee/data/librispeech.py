"""LibriSpeech: ``PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTT.flac`` with one ``.trans.txt`` a chapter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from espnet_ee.data.corpus import UNPACK, Corpus, Utterance
from espnet_ee.errors import UsageError, UserError
from espnet_ee.kaldi import is_count, read_scp

PARTS = {
    "train-clean-5": 1519, "dev-clean-2": 1089,
    "train-clean-100": 28539, "train-clean-360": 104014, "train-other-500": 148688,
    "dev-clean": 2703, "dev-other": 2864, "test-clean": 2620, "test-other": 2939,
}  # fmt: skip
"""The parts of the distribution, and how many utterances each has."""

JOINED = {
    "train_960": ("train-clean-100", "train-clean-360", "train-other-500"),
    "train_460": ("train-clean-100", "train-clean-360"),
    "dev": ("dev-clean", "dev-other"),
}
"""Sets of several parts, as ESPnet's recipe calls them."""

HELD_OUT = ("dev", "test")

_NAME = re.compile(r"[^\s/.][^\s/]*")
"""Of a set, and so of its folder: one word, in no other folder."""


class LibriSpeech(Corpus):
    """LibriSpeech and Mini LibriSpeech. The speaker is the reader and chapter, as in Kaldi.

    A set is called as it is asked for: ``train-clean-100``, or ``train_clean_100`` as in ESPnet's recipe. ``parts`` may
    join several into one: ``train=train-clean-5+dev-clean-2``; ESPnet's joined sets (``train_960``, ``dev``) are known.
    Without ``parts``, every known part that is there is a set, under the name of ESPnet's recipe.

    For a corpus without development and test parts, the option ``hold_out=N`` takes N readers, with all they read, out
    of the one training set named: half of them are ``dev``, the others ``test``.
    """

    name = "librispeech"
    db_key = "LIBRISPEECH"
    folder_name: ClassVar[str] = "LibriSpeech"
    known_sets: ClassVar[Mapping[str, tuple[str, ...]]] = {part.replace("-", "_"): (part,) for part in PARTS}

    known_options: ClassVar[Mapping[str, tuple[str, ...]]] = {"hold_out": ()}

    def choose(self, parts: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        if not parts:
            return self._sets_there()
        if self._hold_out():
            return self._choose_with_held_out([part for part in parts if part not in HELD_OUT])
        return self._choose(parts)

    def _hold_out(self) -> int:
        count = self.options.get("hold_out", "0")
        if not is_count(count) or int(count) == 1:
            raise UsageError(f"--corpus_options: hold_out={count}: give 0, or a number of readers from 2")
        return int(count)

    def _choose_with_held_out(self, parts: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        if len(parts) != 1:
            raise UsageError("--corpus_options: hold_out takes readers out of one training set; name one in --sets")
        ((name, members),) = self._choose(parts).items()
        return {name: members, **dict.fromkeys(HELD_OUT, members)}

    def _choose(self, parts: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        sets: dict[str, tuple[str, ...]] = {}
        for part in parts:
            name, _, joined = part.partition("=")
            members = tuple(joined.split("+")) if joined else JOINED.get(name.replace("-", "_"), tuple(name.split("+")))
            known = {other.replace("-", "_") for other in sets}
            if not _NAME.fullmatch(name) or "" in members or ("+" in name) or name.replace("-", "_") in known:
                raise UsageError(f"--sets: {part!r} is not PART or NAME=PART+PART with a new name")
            sets[name] = tuple(self._part_of(member) for member in members)
        return sets

    def _part_of(self, member: str) -> str:
        return self.known_sets.get(member.replace("-", "_"), (member,))[0]

    def _sets_there(self) -> Mapping[str, tuple[str, ...]]:
        sets = {
            name: parts for name, parts in self.known_sets.items() if any((base / parts[0]).is_dir() for base in self._bases())
        }
        if not sets:
            raise self.missing([base / "train-clean-100" for base in self._bases()])
        return sets

    def _bases(self) -> tuple[Path, Path]:
        return self.root / self.folder_name, self.root

    def utterances(self, set_name: str) -> Iterator[Utterance]:
        chapters = [chapter for part in self.sets[set_name] for chapter in self._chapters(part)]
        if self._hold_out():
            held = hold_out([chapter.parent.name for chapter in chapters], self._hold_out())
            chapters = [path for path in chapters if held.get(path.parent.name, "train") == _role(set_name)]
        for chapter in chapters:
            yield from read_chapter(chapter)

    def distributed(self, set_name: str) -> int | None:
        members = self.sets[set_name]
        if self._hold_out() or not set(members) <= set(PARTS):
            return None
        return sum(PARTS[member] for member in members)

    def _chapters(self, part: str) -> list[Path]:
        folder = self.first_there([base / part for base in self._bases()])
        chapters = sorted(chapter for chapter in folder.glob("*/*") if chapter.is_dir())
        if not chapters:
            raise UserError(f"{folder}: no SPEAKER/CHAPTER folders in it; unpack the corpus again")
        return chapters


def _role(set_name: str) -> str:
    return set_name if set_name in HELD_OUT else "train"


def hold_out(readers: Sequence[str], count: int) -> dict[str, str]:
    """Chooses readers, evenly spaced in the sorted list and the same ones every time, for ``dev`` and ``test`` in turn.

    >>> hold_out(["1", "2", "3", "4"], 2)
    {'1': 'dev', '3': 'test'}

    Raises:
        UserError: nobody would be left to train on.
    """
    names = sorted(set(readers), key=lambda name: (len(name), name))
    if count >= len(names):
        raise UserError(f"hold_out={count}: the training set has only {len(names)} readers; hold out fewer")
    return {names[index * len(names) // count]: HELD_OUT[index % 2] for index in range(count)}


def read_chapter(chapter: Path) -> Iterator[Utterance]:
    """Yields the utterances of one chapter folder.

    Raises:
        UserError: a line of the transcript has no audio file, or an audio file has no line.
    """
    speaker = f"{chapter.parent.name}-{chapter.name}"
    transcript = chapter / f"{speaker}.trans.txt"
    if not transcript.is_file():
        raise UserError(f"{transcript}: no such file; {UNPACK}")
    texts = read_scp(transcript)
    audio = {path.stem: path for path in chapter.glob("*.flac")}
    for number, utt_id in enumerate(texts, 1):
        if utt_id not in audio:
            raise UserError(f"{transcript}:{number}: there is no {chapter / utt_id}.flac; unpack the corpus again")
        if not utt_id.startswith(f"{speaker}-"):
            raise UserError(f"{transcript}:{number}: {utt_id!r} does not begin with {speaker}-; mend the line")
    for utt_id in sorted(audio):
        if utt_id not in texts:
            raise UserError(f"{audio[utt_id]}: has no line in {transcript}; add its transcript or delete it")
        yield Utterance(utt_id, speaker, audio[utt_id], " ".join(texts[utt_id].split()))


def parts_of(sets: Sequence[str], hold_out: int = 0) -> list[str]:
    """The parts of the distribution that sets are made of, each once.

    >>> parts_of(["train_460", "dev_clean", "a=train-clean-100+dev-clean-2"])
    ['train-clean-100', 'train-clean-360', 'dev-clean', 'dev-clean-2']
    """
    if not sets:
        raise UsageError("--parts: is empty; name a part or a set of parts")
    corpus = LibriSpeech(Path(), sets, {"hold_out": str(hold_out)})
    return list(dict.fromkeys(part for members in corpus.sets.values() for part in members))
