"""LibriSpeech: ``PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTT.flac`` with one ``.trans.txt`` a chapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from espnet_ee.data.corpus import Corpus
from espnet_ee.data.utterance import Utterance
from espnet_ee.errors import UsageError, UserError
from espnet_ee.files import read_scp

PARTS = (
    "train-clean-5", "dev-clean-2", "train-clean-100", "train-clean-360", "train-other-500",
    "dev-clean", "dev-other", "test-clean", "test-other",
)  # fmt: skip


class LibriSpeech(Corpus):
    """LibriSpeech and Mini LibriSpeech. The speaker is the reader and chapter, as in Kaldi.

    A set is called as ESPnet's recipe calls it: ``train_clean_100`` for ``train-clean-100``. ``parts`` may join
    several into one: ``dev=dev-clean+dev-other``. Without ``parts``, every known part that is there is a set.
    """

    name = "librispeech"
    db_key = "LIBRISPEECH"
    folder_name: ClassVar[str] = "LibriSpeech"
    known_sets: ClassVar[Mapping[str, tuple[str, ...]]] = {part.replace("-", "_"): (part,) for part in PARTS}

    def choose(self, parts: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        if not parts:
            return self._sets_found()
        sets: dict[str, tuple[str, ...]] = {}
        for part in parts:
            name, _, joined = part.partition("=")
            members = tuple((joined or name).split("+"))
            name = name.replace("-", "_")
            if not name or "" in members or ("+" in name) or name in sets:
                raise UsageError(f"--parts: {part!r} is not PART or NAME=PART+PART with a new name")
            sets[name] = tuple(self._part_of(member) for member in members)
        return sets

    def _part_of(self, member: str) -> str:
        return self.known_sets.get(member.replace("-", "_"), (member,))[0]

    def _sets_found(self) -> Mapping[str, tuple[str, ...]]:
        found = {name: parts for name, parts in self.known_sets.items() if self._find(parts[0]) is not None}
        if not found:
            raise self.missing([base / "train-clean-100" for base in self._bases()])
        return found

    def _bases(self) -> tuple[Path, Path]:
        return self.root / self.folder_name, self.root

    def _find(self, part: str) -> Path | None:
        return next((base / part for base in self._bases() if (base / part).is_dir()), None)

    def utterances(self, set_name: str) -> Iterator[Utterance]:
        for part in self.sets[set_name]:
            folder = self._find(part)
            if folder is None:
                raise self.missing([base / part for base in self._bases()])
            chapters = sorted(chapter for chapter in folder.glob("*/*") if chapter.is_dir())
            if not chapters:
                raise UserError(f"{folder}: no SPEAKER/CHAPTER folders in it; unpack the corpus again")
            for chapter in chapters:
                yield from read_chapter(chapter)


def read_chapter(chapter: Path) -> Iterator[Utterance]:
    """Yields the utterances of one chapter folder.

    Raises:
        UserError: a line of the transcript has no audio file, or an audio file has no line.
    """
    speaker = f"{chapter.parent.name}-{chapter.name}"
    transcript = chapter / f"{speaker}.trans.txt"
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
