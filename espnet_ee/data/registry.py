"""The corpora that ``espnet-ee data prepare --corpus`` knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from espnet_ee.data.an4 import An4
from espnet_ee.data.corpus import Corpus
from espnet_ee.data.librispeech import LibriSpeech
from espnet_ee.data.mini.reader import Mini
from espnet_ee.data.tedlium import TedLium2, TedLium3
from espnet_ee.data.voxpopuli import VoxPopuli
from espnet_ee.errors import UsageError

CORPORA: dict[str, type[Corpus]] = {
    "mini": Mini,
    "an4": An4,
    "librispeech": LibriSpeech,
    "tedlium2": TedLium2,
    "tedlium3": TedLium3,
    "voxpopuli": VoxPopuli,
}


def open_corpus(name: str, root: Path, parts: Sequence[str] = (), options: Mapping[str, str] | None = None) -> Corpus:
    """Makes the reader of a corpus. Raises UsageError for an unknown name, set or option."""
    if name not in CORPORA:
        raise UsageError(f"there is no corpus {name!r}; choose from {' '.join(CORPORA)}")
    return CORPORA[name](root, parts, options)
