"""What is known of an utterance that was recognised."""

from __future__ import annotations

from dataclasses import dataclass, field

from espnet_ee.policy.evidence import ExitEvidence
from espnet_ee.policy.table import EvidenceRow
from espnet_ee.search.words import Word


@dataclass(frozen=True)
class Recognition:
    """One utterance's result.

    Attributes:
        text: the words.
        tokens: the tokens.
        token_ids: their numbers.
        score: log-probability of the greedy path, or the score of the beam's best hypothesis (of attention and CTC the joint one).
        exit_layer: 1-based number of the last block that was computed.
        macs: multiply-accumulates spent: subsampling, blocks, the heads that were read, evidence, the
            searches of attention decoders.
        rows: the exits whose heads were read, in order; the last one gave the text. Where not every exit was kept, the
            others have no hypothesis, and of the evidence only what the policy reads.
        seconds: wall clock from the start of the batch to each of ``rows``, divided by the batch's size.
        words: those of the text with times and confidences (as the decoding configuration maps them), in order, inside the
            audio and without overlap; none where the session does not know how long a frame is, or an
            attention decoder says more than the frames can.
    """

    text: str
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    score: float
    exit_layer: int
    macs: int
    rows: tuple[EvidenceRow, ...] = field(repr=False)  # thousands of characters
    seconds: tuple[float, ...] = field(repr=False)
    words: tuple[Word, ...] = ()

    @property
    def evidence(self) -> ExitEvidence:
        """Evidence of the exit that gave the text."""
        return self.rows[-1].evidence
