"""What a joint search of CTC and an attention decoder found at an exit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from espnet_ee.policy.evidence import ExitEvidence
from espnet_ee.search.align import aligned, chain
from espnet_ee.search.greedy import Hypothesis


@dataclass(frozen=True)
class JointTexts:
    """The texts of one exit, best first; none where there was nothing to search.

    Attributes:
        tokens: of the best text, without start and end.
        scores: joint log scores of the N best, best first.
        decoder_log_prob: mean log-probability that the decoder gives the best text's tokens, its end among them.
        macs: multiply-accumulates of the decoder's steps and of CTC's prefix scores, which depend on the texts that were tried.
    """

    tokens: tuple[int, ...]
    scores: tuple[float, ...]
    decoder_log_prob: float
    macs: int

    def added_to(self, evidence: ExitEvidence) -> ExitEvidence:
        """The exit's evidence with that of its decoder."""
        return replace(evidence, decoder_log_prob=self.decoder_log_prob, decoder_scores=self.scores)

    def hypothesis(self, log_probs: np.ndarray, blank: int) -> Hypothesis:
        """The best text with the spans of its most probable alignment with (T, V); without spans where the frames are too few."""
        score = self.scores[0] if self.scores else 0.0
        placed = aligned(log_probs, chain(self.tokens, blank), blank)
        return Hypothesis(self.tokens, score, () if placed is None else placed[1])
