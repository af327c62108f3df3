"""What a corpus reader says of one utterance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from espnet_ee.data.clip import Span


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
