"""Beam search over prefixes, with or without an n-gram language model of tokens and hotwords."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from espnet_ee.policy.frames import Frames, run_starts
from espnet_ee.policy.searching import BEAM, GREEDY, SearchConfig
from espnet_ee.search.align import aligned, chain
from espnet_ee.search.greedy import Hypothesis, greedy
from espnet_ee.search.hotwords import HotwordScorer
from espnet_ee.search.kenlm import open_ngrams
from espnet_ee.search.lexicon import LexiconScorer
from espnet_ee.search.prefix import PrefixSearch, Scored
from espnet_ee.search.scorer import Scorer, ScorerSum

_IMPOSSIBLE = np.float32(-1e30)  # a number, for infinities have no difference


def open_scorer(config: SearchConfig, tokens: Sequence[str], blank: int) -> Scorer | None:
    """What a beam adds for the tokens of a text; None: nothing.

    Raises:
        UserError: the lexicon or the language model cannot be read or is of other tokens, or no tokens spell a hotword.
    """
    hotwords: list[Scorer] = [HotwordScorer(dict(config.hotwords), tokens, blank)] if config.hotwords else []
    lexicon: list[Scorer] = [] if config.lexicon is None else [LexiconScorer(config.lexicon, tokens, blank)]
    lm = [] if config.lm is None else [open_ngrams(config.lm, tokens, blank, config.lm_weight)]
    scorers = [*lexicon, *lm, *hotwords]
    return ScorerSum(scorers) if len(scorers) > 1 else next(iter(scorers), None)


class GreedySearch:
    """The best token of every frame."""

    needs_log_probs = False

    def __init__(self, blank: int) -> None:
        self.blank = blank

    def __call__(self, frames: Frames) -> Hypothesis:
        """The greedy hypothesis of one exit's frames."""
        return greedy(frames, self.blank)


class BeamSearch:
    """The best text of a beam, aligned with the frames.

    A text's score is the logarithm of the summed probabilities of its alignments, and what :class:`SearchConfig` adds to it.

    Args:
        config: of kind ``beam``.
        tokens: the vocabulary.
        blank: blank id.

    Raises:
        UserError: as :func:`open_scorer`.
    """

    needs_log_probs = True

    def __init__(self, config: SearchConfig, tokens: Sequence[str], blank: int) -> None:
        self.config, self.blank = config, blank
        self._search = PrefixSearch(config.beam, config.tokens, config.width, blank, open_scorer(config, tokens, blank))

    def texts(self, log_probs: np.ndarray) -> Scored:
        """Texts and scores without what is added for each token, best first; none where there is no frame or a number is broken.

        Args:
            log_probs: (T, V) of one utterance, padding cut off.
        """
        if not len(log_probs) or np.isnan(log_probs).any():
            return []
        if self.config.blank_skip is not None:
            log_probs = without_blank_frames(log_probs, self.blank, self.config.blank_skip)
        return self._search.texts(log_probs)

    def nbest(self, log_probs: np.ndarray) -> Scored:
        """Texts and scores, best first; see :meth:`texts`."""
        return with_insertion(self.texts(log_probs), self.config.insertion)

    def scores(self, log_probs: np.ndarray) -> tuple[float, ...]:
        """The scores of :meth:`nbest`."""
        return tuple(score for _, score in self.nbest(log_probs))

    def __call__(self, frames: Frames) -> Hypothesis:
        """The best hypothesis of one exit's frames, with the spans of its most probable alignment."""
        assert frames.log_probs is not None, "the session was asked for them"
        found = self.nbest(frames.log_probs)
        if not found:
            return Hypothesis((), 0.0, ())
        text, score = found[0]
        placed = aligned(frames.log_probs, chain(text, self.blank), self.blank)
        assert placed is not None, "a beam gives only what fits into its frames"
        return Hypothesis(text, score, placed[1])


def with_insertion(found: Scored, insertion: float) -> Scored:
    """Texts with what is added for each of their tokens, best first."""
    return sorted(((text, score + insertion * len(text)) for text, score in found), key=lambda item: (-item[1], item[0]))


def without_blank_frames(log_probs: np.ndarray, blank: int, probability: float) -> np.ndarray:
    """The frames (T, V) without those whose blank has so high a probability; each run of them is one frame that can be nothing else.

    The scores of a search are then those of all alignments that have the blank in these frames.
    """
    sure = log_probs[:, blank] >= math.log(probability)
    starts = run_starts(sure)
    runs = starts[sure[starts]]
    if not len(runs):
        return log_probs
    kept = ~sure
    kept[runs] = True
    shorter = log_probs.copy()
    shorter[runs] = _IMPOSSIBLE
    shorter[runs, blank] = np.add.reduceat(log_probs[:, blank], starts)[sure[starts]]
    return shorter[kept]


def nbest_search(config: SearchConfig, size: int, tokens: tuple[str, ...], blank: int) -> BeamSearch:
    """What gives N-best lists beside a configuration's search: the same beam, at least as wide; beside a greedy one a plain beam.

    Raises:
        UserError: as :class:`BeamSearch`.
    """
    width = size if config.kind == GREEDY else max(size, config.beam)
    search = build_search(replace(config, kind=BEAM, beam=width), tokens, blank)
    assert isinstance(search, BeamSearch)
    return search


@lru_cache(maxsize=4)  # a language model takes seconds to read, and a recogniser asks for every batch
def build_search(config: SearchConfig, tokens: tuple[str, ...], blank: int) -> GreedySearch | BeamSearch:
    """What a decoding configuration asks for.

    Raises:
        UserError: as :class:`BeamSearch`.
    """
    return GreedySearch(blank) if config.kind == GREEDY else BeamSearch(config, tokens, blank)
