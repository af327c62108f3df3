"""What the learned policy reads off the evidence so far: a name and a short function each.

A feature may look at every exit passed, never at a later one. It returns NaN when it cannot be told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from espnet_ee.policy.evidence import ExitEvidence


def _log(entropy: float) -> float:
    # The floor keeps the logarithm of a certain exit finite; rounding may leave its entropy just below 0.
    return math.log((entropy if not entropy < 0 else 0.0) + 1e-6)


def log_entropy(evidence: Sequence[ExitEvidence]) -> float:
    """Logarithm of the mean frame entropy."""
    return _log(evidence[-1].entropy)


def least_log_entropy(evidence: Sequence[ExitEvidence]) -> float:
    """Logarithm of the least mean frame entropy of the exits so far."""
    return _log(min(exit_.entropy for exit_ in evidence))


def log_tail(evidence: Sequence[ExitEvidence]) -> float:
    """Logarithm of the entropy of the most uncertain frames."""
    return _log(evidence[-1].entropy_tail)


def frame_doubt(evidence: Sequence[ExitEvidence]) -> float:
    """One minus the mean largest probability of all frames."""
    return 1.0 - evidence[-1].confidence


def doubt(evidence: Sequence[ExitEvidence]) -> float:
    """One minus the mean largest probability of the spoken frames; of all frames when nothing was spoken."""
    last = evidence[-1]
    return 1.0 - (last.spoken_confidence if last.tokens else last.confidence)


def token_doubt(evidence: Sequence[ExitEvidence]) -> float:
    """One minus the confidence of the least sure token; of the mean frame when nothing was spoken."""
    last = evidence[-1]
    return 1.0 - (last.token_confidence if last.tokens else last.confidence)


def least_token_doubt(evidence: Sequence[ExitEvidence]) -> float:
    """The least :func:`token_doubt` of the exits so far: an exit below may have been sure already."""
    return min(token_doubt([exit_]) for exit_ in evidence)


def changed_frames(evidence: Sequence[ExitEvidence]) -> float:
    """Share of the frames whose label changed since the exit before; 0 at the first."""
    return evidence[-1].changed_share if len(evidence) > 1 else 0.0


def changed_tokens(evidence: Sequence[ExitEvidence]) -> float:
    """Length of the stretch of tokens that changed since the exit before, per token; 0 at the first."""
    if len(evidence) < 2:
        return 0.0
    # A stretch, not an edit distance: linear in the length, so deciding stays cheap on long utterances.
    before, after = evidence[-2].tokens, evidence[-1].tokens
    shorter = min(len(before), len(after))
    head = next((i for i in range(shorter) if before[i] != after[i]), shorter)
    tail = next((i for i in range(shorter - head) if before[-1 - i] != after[-1 - i]), shorter - head)
    return (max(len(before), len(after)) - head - tail) / max(1, len(after))


def same_tokens(evidence: Sequence[ExitEvidence]) -> float:
    """Whether the exit before gave the same tokens; 0 at the first."""
    return float(len(evidence) > 1 and evidence[-1].tokens == evidence[-2].tokens)


def agreeing_exits(evidence: Sequence[ExitEvidence]) -> float:
    """Number of the exits before that gave the same tokens."""
    return float(sum(exit_.tokens == evidence[-1].tokens for exit_ in evidence[:-1]))


def blank_share(evidence: Sequence[ExitEvidence]) -> float:
    """Share of the frames whose best token is the blank."""
    return evidence[-1].blank_share


def token_rate(evidence: Sequence[ExitEvidence]) -> float:
    """Tokens per frame."""
    return len(evidence[-1].tokens) / evidence[-1].frames if evidence[-1].frames else math.nan


FEATURES: dict[str, Callable[[Sequence[ExitEvidence]], float]] = {
    feature.__name__: feature
    for feature in (
        log_entropy,
        least_log_entropy,
        log_tail,
        frame_doubt,
        doubt,
        token_doubt,
        least_token_doubt,
        changed_frames,
        changed_tokens,
        same_tokens,
        agreeing_exits,
        blank_share,
        token_rate,
    )
}
