"""The embedded mini corpus (made by ``espnet-ee data mini``), laid out as LibriSpeech is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from espnet_ee.data.corpus import Corpus
from espnet_ee.data.librispeech import LibriSpeech


class Mini(LibriSpeech):
    """Synthetic sentences: sets ``train``, ``dev`` and ``test``."""

    name = "mini"
    db_key = "MINI"
    folder_name: ClassVar[str] = "MiniSpeech"
    known_sets: ClassVar[Mapping[str, tuple[str, ...]]] = {name: (name,) for name in ("train", "dev", "test")}

    def choose(self, parts: Sequence[str]) -> Mapping[str, tuple[str, ...]]:
        return Corpus.choose(self, parts)
