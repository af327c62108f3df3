"""What one exit says of one utterance: all an exit policy may look at."""

from __future__ import annotations

import math
from dataclasses import dataclass

OF_DECODER = frozenset({"decoder_log_prob", "decoder_scores"})
"""The fields that cost a joint search with an attention decoder."""


@dataclass(frozen=True)
class ExitEvidence:
    """The evidence of one exit for one utterance, over its unpadded frames only.

    Fields that nobody asked for, or that a table does not have, are NaN or empty; no policy stops at NaN.

    Attributes:
        layer: exit layer, the 1-based number of the block the exit follows.
        tokens: greedy CTC token numbers, blanks and repeats removed.
        entropy: mean frame entropy divided by the vocabulary's size, natural log:
            ``-(1/(T*V)) * sum_t sum_v p log p`` (arXiv 2309.09546, section 3).
        confidence: mean over the frames of the largest probability, in 0..1.
        blank_share: share of the frames whose best token is the blank, in 0..1.
        score: log-probability of the greedy path (sum over the frames), <= 0.
        frames: T, the number of unpadded encoder frames.
        nbest_scores: total log scores of the beam's N best, best first; empty unless a policy asked for them.
        spoken_confidence: mean over the frames whose best token is not the blank of the largest probability;
            NaN without such a frame.
        token_confidence: least sure token: the minimum over the tokens of the largest probability within the
            token's frames; NaN without a token.
        cluster_entropy: mean entropy over the frames of what the exit's cluster head says, in nats; of models without these NaN.
        decoder_log_prob: mean log-probability that the exit's attention decoder gives the tokens of its joint search's text, the
            end among them.
        decoder_scores: joint log scores of that search's N best, best first.
    """

    layer: int
    tokens: tuple[int, ...] = ()
    entropy: float = math.nan
    confidence: float = math.nan
    blank_share: float = math.nan
    score: float = math.nan
    frames: int = 0
    nbest_scores: tuple[float, ...] = ()
    spoken_confidence: float = math.nan
    token_confidence: float = math.nan
    cluster_entropy: float = math.nan
    decoder_log_prob: float = math.nan
    decoder_scores: tuple[float, ...] = ()
