"""What every corpus reader offers. A new corpus is one subclass in one new file, and one line in ``registry.py``."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from espnet_ee.data.clip import Span
from espnet_ee.data.skips import Skip
from espnet_ee.data.word_times import TimedWords
from espnet_ee.errors import UsageError, UserError

UNPACK = "unpack the corpus again"


@dataclass(frozen=True)
class Utterance:
    """One utterance of a corpus.

    Attributes:
        utt_id: its name, unique in the corpus; begins with ``speaker`` so that both sort alike.
        speaker: who speaks.
        audio: the file holding this utterance, one channel.
        text: the reference transcript; one space between words.
        span: where in the file it is; None: the file holds exactly this utterance.
    """

    utt_id: str
    speaker: str
    audio: Path
    text: str
    span: Span | None = None


class Corpus(ABC):
    """A speech corpus as it is distributed, in a folder (``root``).

    Attributes:
        name: what ``--corpus`` calls it; ``--NAME_root`` is the recipe's option for its folder.
        db_key: the key of ``db.sh`` that holds its folder.
        known_sets: name of every set -> the parts of the distribution it is made of.
        known_options: name of every option of this corpus -> its choices (none: any value).
        sets: the sets chosen (``parts``; none: all), in the order in which they are to be made.
    """

    name: ClassVar[str]
    db_key: ClassVar[str]
    known_sets: ClassVar[Mapping[str, tuple[str, ...]]]
    known_options: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    sets: Mapping[str, tuple[str, ...]]

    def __init__(self, root: Path, parts: Sequence[str] = (), options: Mapping[str, str] | None = None) -> None:
        self.root = root
        self.options = dict(options or {})
        self._check_options()
        for number, part in enumerate(parts):
            if part in parts[:number]:
                raise UsageError(f"--sets: {part!r} is named twice; name each set once")
        self.sets = self.choose(parts)

    def choose(self, parts: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        """Looks up the sets asked for. Raises UsageError for a name that the corpus does not have."""
        for part in parts:
            if part not in self.known_sets:
                raise UsageError(f"--sets: {self.name} has no {part!r}; choose from {' '.join(self.known_sets)}")
        return {name: self.known_sets[name] for name in parts or self.known_sets}

    def _check_options(self) -> None:
        for name, value in self.options.items():
            if name not in self.known_options:
                allowed = " ".join(self.known_options) or "none"
                raise UsageError(f"--corpus_options: {self.name} has no {name!r}; it has: {allowed}")
            choices = self.known_options[name]
            if choices and value not in choices:
                raise UsageError(f"--corpus_options: {name}={value}: choose from {' '.join(choices)}")

    def lm_sentences(self) -> Iterator[str]:
        """Yields the text for language models that comes with the corpus. Raises UserError if there is none."""
        raise UserError(f"{self.name} brings no text for language models; leave --lm_text out")

    def distributed(self, set_name: str) -> int | None:
        """How many utterances one of ``sets`` has in the published corpus; None if nobody knows."""
        del set_name
        return None

    def word_times(self) -> TimedWords:
        """When the words of its utterances are said, where the corpus knows it."""
        return {}

    @abstractmethod
    def utterances(self, set_name: str) -> Iterator[Utterance | Skip]:
        """Yields the utterances of one of ``sets``, in any order; an item that is broken by itself as a ``Skip``.

        Raises:
            UserError: the corpus is not there, or audio and transcripts do not belong together.
        """

    def first_there(self, places: Sequence[Path]) -> Path:
        """The first of these files or folders that is there. Raises UserError if none is."""
        for place in places:
            if os.path.exists(place):  # a path longer than the system takes is none
                return place
        raise self.missing(places)

    def missing(self, looked_for: Sequence[Path]) -> UserError:
        """The error for a corpus that is not where it was looked for."""
        places = " nor ".join(str(path) for path in looked_for)
        return UserError(
            f"no {self.name} corpus: there is no {places}; give its folder with --{self.name}_root or as {self.db_key} in db.sh"
        )
