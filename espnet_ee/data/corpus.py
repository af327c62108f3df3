"""What every corpus reader offers. A new corpus is one subclass in one new file, and one line in ``registry.py``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from espnet_ee.data.skips import Skip
from espnet_ee.data.utterance import Utterance
from espnet_ee.data.word_times import TimedWords
from espnet_ee.errors import UsageError, UserError

UNPACK = "unpack the corpus again"


class Corpus(ABC):
    """A speech corpus as it is distributed.

    Attributes:
        name: what ``--corpus`` calls it; ``--NAME_root`` is the recipe's option for its folder.
        db_key: the key of ``db.sh`` that holds its folder.
        known_sets: name of every set -> the parts of the distribution it is made of.
        known_options: name of every option of this corpus -> its choices (none: any value).
        sets: the sets chosen, in the order in which they are to be made.

    Args:
        root: the folder the corpus lies in.
        parts: the names of the sets wanted; none means all.
        options: what this corpus alone has options for.
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

    def missing(self, looked_for: Sequence[Path]) -> UserError:
        """The error for a corpus that is not where it was looked for."""
        places = " nor ".join(str(path) for path in looked_for)
        return UserError(
            f"no {self.name} corpus: there is no {places}; give its folder with --{self.name}_root or as {self.db_key} in db.sh"
        )
