"""What a corpus reader says of one utterance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Utterance:
    """One utterance of a corpus.

    Attributes:
        utt_id: its name, unique in the corpus; begins with ``speaker`` so that both sort alike.
        speaker: who speaks.
        audio: the file holding exactly this utterance, one channel.
        text: the reference transcript; one space between words.
    """

    utt_id: str
    speaker: str
    audio: Path
    text: str
