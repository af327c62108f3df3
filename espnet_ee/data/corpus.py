"""What every corpus reader offers. A new corpus is one subclass in one new file, and one line in ``registry.py``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from espnet_ee.data.utterance import Utterance
from espnet_ee.errors import UsageError, UserError


class Corpus(ABC):
    """A speech corpus as it is distributed.

    Attributes:
        name: what ``--corpus`` calls it; ``--NAME_root`` is the recipe's option for its folder.
        db_key: the key of ``db.sh`` that holds its folder.
        known_sets: name of every set -> the parts of the distribution it is made of.
        sets: the sets chosen, in the order in which they are to be made.

    Args:
        root: the folder the corpus lies in.
        parts: the names of the sets wanted; none means all.
    """

    name: ClassVar[str]
    db_key: ClassVar[str]
    known_sets: ClassVar[Mapping[str, tuple[str, ...]]]
    sets: Mapping[str, tuple[str, ...]]

    def __init__(self, root: Path, parts: Sequence[str] = ()) -> None:
        self.root = root
        self.sets = self.choose(parts)

    def choose(self, parts: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        """Looks up the sets asked for. Raises UsageError for a name that the corpus does not have."""
        for part in parts:
            if part not in self.known_sets:
                raise UsageError(f"--parts: {self.name} has no {part!r}; choose from {' '.join(self.known_sets)}")
        return {name: self.known_sets[name] for name in parts or self.known_sets}

    @abstractmethod
    def utterances(self, set_name: str) -> Iterator[Utterance]:
        """Yields the utterances of one of ``sets``, in any order.

        Raises:
            UserError: the corpus is not there, or audio and transcripts do not belong together.
        """

    def missing(self, looked_for: Sequence[Path]) -> UserError:
        """The error for a corpus that is not where it was looked for."""
        places = " nor ".join(str(path) for path in looked_for)
        return UserError(
            f"no {self.name} corpus: there is no {places}; "
            f"give its folder with --{self.name}_root or as {self.db_key} in db.sh"
        )
