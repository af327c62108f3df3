"""Beam search over prefixes by flashlight-text, without lexicon, with or without an n-gram language model of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import numpy as np

from espnet_ee.errors import UserError
from espnet_ee.policy.frames import Frames
from espnet_ee.policy.searching import GREEDY, SearchConfig
from espnet_ee.search.align import align, chain
from espnet_ee.search.arpa import load_lm
from espnet_ee.search.greedy import Hypothesis, greedy, spans_of_path

# Tokens tried in each frame, and how far below the best a hypothesis may fall (natural log).
_TOKENS, _WIDTH = 10, 50.0

Scored = list[tuple[tuple[int, ...], float]]
"""Texts as tokens, with their scores, best first."""


class NBestSearch:
    """A beam search without lexicon.

    A text's score is the logarithm of the summed probabilities of its alignments, with a language model plus ``lm_weight``
    times the natural logarithm of its probability with its end.

    Args:
        nbest: width of the beam, the most hypotheses it gives.
        vocabulary: number of tokens.
        blank: blank id.
        lm: a language model of flashlight's; None: none.
        lm_weight: its weight.

    Raises:
        UserError: flashlight-text is not installed.
    """

    def __init__(self, nbest: int, vocabulary: int, blank: int = 0, lm: Any = None, lm_weight: float = 0.0) -> None:
        flashlight = _flashlight()
        options = flashlight.LexiconFreeDecoderOptions(
            beam_size=nbest,
            beam_size_token=min(_TOKENS, vocabulary),
            beam_threshold=_WIDTH,
            lm_weight=lm_weight * math.log(10),  # KenLM gives decimal logarithms
            sil_score=0.0,  # of no token
            log_add=True,  # alignments of one text are added up: a total score, not a path's
            criterion_type=flashlight.CriterionType.CTC,
        )
        self.blank = blank
        # A model that says 0 of everything where there is none.
        self.decoder = flashlight.LexiconFreeDecoder(options, lm or flashlight.ZeroLM(), -1, blank, [])

    def texts(self, log_probs: np.ndarray) -> Scored:
        """The best texts and their scores, best first; none when there is no frame or a number is broken.

        Args:
            log_probs: (T, V) of one utterance, padding cut off.
        """
        if not len(log_probs) or np.isnan(log_probs).any():
            return []
        emissions = np.ascontiguousarray(log_probs, dtype=np.float32)
        found: dict[tuple[int, ...], float] = {}
        for hypothesis in self.decoder.decode(emissions.ctypes.data, *emissions.shape):
            # The search keeps a text apart by whether it ends in a blank; around every text it puts the same -1.
            text = tuple(token for token, _ in groupby(hypothesis.tokens) if token not in (self.blank, -1))
            found[text] = float(np.logaddexp(found.get(text, -np.inf), hypothesis.score))
        return sorted(found.items(), key=lambda item: (-item[1], item[0]))

    def scores(self, log_probs: np.ndarray) -> tuple[float, ...]:
        """The scores of :meth:`texts`."""
        return tuple(score for _, score in self.texts(log_probs))


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

    Args:
        config: of kind ``beam``.
        tokens: the vocabulary.
        blank: blank id.

    Raises:
        UserError: flashlight-text is not installed, or the language model cannot be read or is of other tokens.
    """

    needs_log_probs = True

    def __init__(self, config: SearchConfig, tokens: Sequence[str], blank: int) -> None:
        self.config, self.blank = config, blank
        _flashlight()  # said first
        lm = None if config.lm is None else load_lm(config.lm, tokens, blank)
        self._search = NBestSearch(config.beam, len(tokens), blank, lm, 0.0 if lm is None else config.lm_weight)

    def nbest(self, log_probs: np.ndarray) -> Scored:
        """Texts and scores, best first; see :class:`NBestSearch` and :class:`SearchConfig`'s ``insertion``."""
        found = [(text, score + self.config.insertion * len(text)) for text, score in self._search.texts(log_probs)]
        return sorted(found, key=lambda item: (-item[1], item[0]))

    def __call__(self, frames: Frames) -> Hypothesis:
        """The best hypothesis of one exit's frames, with the spans of its most probable alignment."""
        assert frames.log_probs is not None, "the session was asked for them"
        found = self.nbest(frames.log_probs)
        if not found:
            return Hypothesis((), 0.0, ())
        text, score = found[0]
        path = align(frames.log_probs, chain(text, self.blank))
        assert path is not None, "a beam gives only what fits into its frames"
        return Hypothesis(text, score, spans_of_path(path, frames.log_probs[np.arange(len(path)), path], self.blank)[1])


@lru_cache(maxsize=4)  # a language model takes seconds to read, and a recogniser asks for every batch
def build_search(config: SearchConfig, tokens: tuple[str, ...], blank: int) -> GreedySearch | BeamSearch:
    """What a decoding configuration asks for.

    Raises:
        UserError: as :class:`BeamSearch`.
    """
    return GreedySearch(blank) if config.kind == GREEDY else BeamSearch(config, tokens, blank)


def _flashlight() -> Any:
    try:
        from flashlight.lib.text import decoder
    except ImportError:
        raise UserError(
            "an N-best (policy posterior, search beam, --nbest) needs flashlight-text, which is built for Python 3.12 and older; "
            "in the project's folder: pip install -e '.[nbest]'"
        ) from None
    return decoder
