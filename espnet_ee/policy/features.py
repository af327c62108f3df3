"""What the learned policy reads off the evidence so far: a name and a short function each.

A feature may look at every exit passed, never at a later one. It returns NaN when it cannot be told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from espnet_ee.policy.evidence import ExitEvidence


@dataclass(frozen=True)
class Feature:
    """A number made of the evidence so far.

    Attributes:
        of: the function.
        reads: the fields of :class:`ExitEvidence` that it looks at.
        most: what it can be at most, of so many exits; it is never below 0, but for the entropy's.
    """

    of: Callable[[Sequence[ExitEvidence]], float]
    reads: frozenset[str]
    most: Callable[[int], float] = lambda exits: math.inf

    def __call__(self, evidence: Sequence[ExitEvidence]) -> float:
        return self.of(evidence)


def log_entropy(evidence: Sequence[ExitEvidence]) -> float:
    """Logarithm of the mean frame entropy."""
    entropy = evidence[-1].entropy
    # The floor keeps the logarithm of a certain exit finite; rounding may leave its entropy just below 0.
    return math.log((entropy if not entropy < 0 else 0.0) + 1e-6)


def least_token_doubt(evidence: Sequence[ExitEvidence]) -> float:
    """One minus the confidence of the least sure token, at the surest of the exits so far: one below may have been sure already.

    Of an exit that spoke nothing, one minus the confidence of its mean frame.
    """
    return min([1.0 - (exit_.token_confidence if exit_.tokens else exit_.confidence) for exit_ in evidence])


def changed_tokens(evidence: Sequence[ExitEvidence]) -> float:
    """Length of the stretch of tokens that changed since the exit before, per token; 0 at the first."""
    if len(evidence) < 2:
        return 0.0
    # A stretch, not an edit distance: linear in the length, so deciding stays cheap on long utterances.
    before, after = evidence[-2].tokens, evidence[-1].tokens
    if before == after:
        return 0.0
    shorter, head, tail = min(len(before), len(after)), 0, 0
    while head < shorter and before[head] == after[head]:
        head += 1
    while tail < shorter - head and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    return (max(len(before), len(after)) - head - tail) / max(1, len(after))


def agreeing_exits(evidence: Sequence[ExitEvidence]) -> float:
    """Number of the exits before that gave the same tokens."""
    return float([exit_.tokens for exit_ in evidence].count(evidence[-1].tokens) - 1)


def decoder_doubt(evidence: Sequence[ExitEvidence]) -> float:
    """One minus the geometric mean probability that the exit's attention decoder gives its text."""
    mean = evidence[-1].decoder_log_prob
    return -math.expm1(mean) if -math.inf < mean <= 0 else math.nan


FEATURES: dict[str, Feature] = {
    "log_entropy": Feature(log_entropy, frozenset({"entropy"})),
    "least_token_doubt": Feature(least_token_doubt, frozenset({"tokens", "token_confidence", "confidence"}), lambda exits: 1.0),
    "changed_tokens": Feature(changed_tokens, frozenset({"tokens"})),
    "agreeing_exits": Feature(agreeing_exits, frozenset({"tokens"}), lambda exits: exits - 1.0),
    "decoder_doubt": Feature(decoder_doubt, frozenset({"decoder_log_prob"})),
}
