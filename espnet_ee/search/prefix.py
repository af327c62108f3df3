"""A CTC beam over prefixes, in plain Python and NumPy.

Libraries' searches were tried beside it: flashlight-text's and ctc-beam-decoder's sums lack some alignments of a text (0.035 of 13.6 nats on
40 frames of 30 tokens, whatever the beam), are about as quick in a frame of a trained model, and neither has wheels for all of the
interpreters and processors that a model runs on.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from heapq import heapify, heappush, heapreplace
from operator import itemgetter
from typing import Any

import numpy as np

from espnet_ee.search.scorer import Scorer

Scored = list[tuple[tuple[int, ...], float]]
"""Texts as tokens, with their scores, best first."""

_Candidate = tuple[float, "_Prefix", float, float]
"""A prefix with what a frame makes of it: the sum, and its parts that end in the blank and in the last token."""


class _Prefix:
    """Tokens said so far, and the summed probability of their alignments up to a frame, relative to the best prefix's.

    The scorer multiplies it by ``factor`` for the last token, and by ``most`` at most for a next one (None: not asked yet).
    """

    __slots__ = ("blank", "children", "factor", "is_kept", "most", "parent", "spoken", "state", "token", "total")

    def __init__(self, parent: _Prefix | None, token: int, state: Any, factor: float) -> None:
        self.parent, self.token, self.state, self.factor = parent, token, state, factor
        self.most: float | None = None
        self.children: dict[int, _Prefix] = {}
        self.total = self.blank = self.spoken = 0.0
        self.is_kept = False

    def tokens(self) -> tuple[int, ...]:
        """All of them, in order."""
        tokens, prefix = [], self
        while prefix.parent is not None:
            tokens.append(prefix.token)
            prefix = prefix.parent
        return tuple(reversed(tokens))


class PrefixSearch:
    """CTC prefix beam search.

    A text's score is the logarithm of the summed probabilities of its alignments, and what a scorer adds. No prefix is dropped that
    belongs to the best ones: what is left out is only what could not come among them.

    Args:
        beam: prefixes kept from frame to frame.
        tokens: the best tokens of a frame that are tried.
        width: prefixes that fall so far (natural logarithm) below the best are dropped.
        blank: blank id.
        scorer: what tokens add; None: nothing.
    """

    def __init__(self, beam: int, tokens: int, width: float, blank: int, scorer: Scorer | None = None) -> None:
        self._beam, self._tokens, self._blank, self._scorer = beam, tokens, blank, scorer
        self._narrow = math.exp(-width)

    def texts(self, log_probs: np.ndarray) -> Scored:
        """The best texts and their scores, best first.

        Args:
            log_probs: (T, V) of one utterance, at least one frame; no number is NaN.
        """
        highest = log_probs.max(axis=1).astype(np.float64)
        if not np.isfinite(highest).all():
            return []
        root = _Prefix(None, -1, self._scorer.start() if self._scorer else None, 1.0)
        root.total, root.blank, root.is_kept = 1.0, 1.0, True
        beam, score = [root], float(highest.sum())
        for tried in self._tried(log_probs, highest):
            beam, best = self._advance(beam, tried)
            score += math.log(best)
        found = [(prefix.tokens(), math.log(prefix.total) + score + self._end(prefix)) for prefix in beam]
        found = [(text, total) for text, total in found if total > -math.inf]  # of a lexicon: in the middle of a word
        return sorted(found, key=lambda item: (-item[1], item[0]))

    def _end(self, prefix: _Prefix) -> float:
        return self._scorer.end(prefix.state) if self._scorer else 0.0

    def _tried(self, log_probs: np.ndarray, highest: np.ndarray) -> Iterator[list[tuple[int, float]]]:
        """Of every frame the tokens that are tried, best first, with their probabilities relative to the best's."""
        count = min(self._tokens, log_probs.shape[1])
        places = np.argpartition(log_probs, -count, axis=1)[:, -count:]
        places = np.take_along_axis(places, np.argsort(-np.take_along_axis(log_probs, places, 1), axis=1, kind="stable"), 1)
        values = np.exp(np.take_along_axis(log_probs, places, 1) - highest[:, None])
        for tokens, probabilities in zip(places.tolist(), values.tolist(), strict=True):
            yield list(zip(tokens, probabilities, strict=True))

    def _advance(self, beam: list[_Prefix], tried: list[tuple[int, float]]) -> tuple[list[_Prefix], float]:
        """The beam after a frame, and how probable its best prefix is relative to the best one before."""
        candidates = self._stay(beam, dict(tried))
        candidates += self._grow(beam, tried, [candidate[0] for candidate in candidates])
        candidates.sort(key=itemgetter(0), reverse=True)
        best = candidates[0][0]
        if not best:  # less than numbers can say, of everything: as if the frame were not there
            return beam, sys.float_info.min
        for prefix in beam:
            prefix.is_kept = False
        kept, least = [], best * self._narrow
        for total, prefix, blank, spoken in candidates[: self._beam]:
            if not total or total < least:
                break
            prefix.total, prefix.blank, prefix.spoken, prefix.is_kept = total / best, blank / best, spoken / best, True
            kept.append(prefix)
        return kept, best

    def _stay(self, beam: list[_Prefix], probability: dict[int, float]) -> list[_Candidate]:
        """What the frame makes of the prefixes of the beam: by the blank, by their last token, and by way of each other."""
        silent, candidates = probability.get(self._blank, 0.0), []
        for prefix in beam:
            blank, spoken = prefix.total * silent, 0.0
            said, parent = probability.get(prefix.token, 0.0), prefix.parent
            if said and parent is not None:
                spoken = prefix.spoken * said
                if parent.is_kept:
                    spoken += (parent.blank if parent.token == prefix.token else parent.total) * said * prefix.factor
            candidates.append((blank + spoken, prefix, blank, spoken))
        return candidates

    def _grow(self, beam: list[_Prefix], tried: list[tuple[int, float]], totals: list[float]) -> Iterator[_Candidate]:
        """New prefixes that can come among the best. Each has one way from the beam, so what is below these is so for good.

        Args:
            beam: before the frame, best first.
            tried: the frame's tokens.
            totals: of the candidates so far; becomes a heap of the best ones'.
        """
        floor = max(totals) * self._narrow
        heapify(totals)
        if len(totals) >= self._beam:
            floor = max(floor, totals[0])
        for prefix in beam:
            if (most := prefix.most) is None:
                most = prefix.most = math.exp(min(self._scorer.most(prefix.state), 700.0)) if self._scorer else 1.0
            for token, said in tried:
                if token == self._blank:
                    continue
                repeated = token == prefix.token  # between equal tokens there is a blank
                reached = (prefix.blank if repeated else prefix.total) * said
                if reached * most <= floor:
                    if repeated:
                        continue
                    break  # the others are less probable still
                child = prefix.children.get(token)
                state, factor = self._follow(prefix, token) if child is None else (child.state, child.factor)
                if (child is not None and child.is_kept) or (total := reached * factor) <= floor:
                    continue
                if child is None:
                    child = prefix.children[token] = _Prefix(prefix, token, state, factor)
                yield total, child, 0.0, total
                if len(totals) < self._beam:
                    heappush(totals, total)
                else:
                    heapreplace(totals, total)
                if len(totals) >= self._beam and totals[0] > floor:
                    floor = totals[0]

    def _follow(self, prefix: _Prefix, token: int) -> tuple[Any, float]:
        """The scorer's state after a further token, and the factor of it."""
        if self._scorer is None:
            return None, 1.0
        state, added = self._scorer.step(prefix.state, token)
        return state, math.exp(added)
