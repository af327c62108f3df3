"""The embedded mini corpus (made by ``espnet-ee data mini``), laid out as LibriSpeech is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from espnet_ee.data.corpus import Corpus
from espnet_ee.data.librispeech import LibriSpeech
from espnet_ee.data.word_times import WORD_TIMES, TimedWords, read_word_times
from espnet_ee.files import is_file


class Mini(LibriSpeech):
    """Synthetic sentences: sets ``train``, ``dev`` and ``test``."""

    name = "mini"
    db_key = "MINI"
    folder_name: ClassVar[str] = "MiniSpeech"
    known_sets: ClassVar[Mapping[str, tuple[str, ...]]] = {name: (name,) for name in ("train", "dev", "test")}

    def choose(self, parts: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        return Corpus.choose(self, parts)

    def word_times(self) -> TimedWords:
        table = next((base / WORD_TIMES for base in self._bases() if is_file(base / WORD_TIMES)), None)
        return {} if table is None else read_word_times(table)
