"""N-best scores by flashlight-text's lexicon-free CTC beam search: for the policy ``posterior`` only."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np

from espnet_ee.errors import UserError

# Tokens tried in each frame, and how far below the best a hypothesis may fall (natural log).
_TOKENS, _WIDTH = 10, 50.0


class NBestSearch:
    """A beam search without lexicon and language model.

    Args:
        nbest: width of the beam, the most hypotheses it gives.
        vocabulary: number of tokens.
        blank: blank id.

    Raises:
        UserError: flashlight-text is not installed.
    """

    def __init__(self, nbest: int, vocabulary: int, blank: int = 0) -> None:
        flashlight = _flashlight()
        options = flashlight.LexiconFreeDecoderOptions(
            beam_size=nbest,
            beam_size_token=min(_TOKENS, vocabulary),
            beam_threshold=_WIDTH,
            lm_weight=0.0,  # of a model that says 0 of everything
            sil_score=0.0,  # of no token
            log_add=True,  # alignments of one text are added up: a total score, not a path's
            criterion_type=flashlight.CriterionType.CTC,
        )
        self.blank = blank
        self.decoder = flashlight.LexiconFreeDecoder(options, flashlight.ZeroLM(), -1, blank, [])

    def scores(self, log_probs: np.ndarray) -> tuple[float, ...]:
        """Total log scores of the best texts, best first; none when there is no frame or a number is broken.

        Args:
            log_probs: (T, V) of one utterance, padding cut off.
        """
        if not len(log_probs) or np.isnan(log_probs).any():
            return ()
        emissions = np.ascontiguousarray(log_probs, dtype=np.float32)
        found: dict[tuple[int, ...], float] = {}
        for hypothesis in self.decoder.decode(emissions.ctypes.data, *emissions.shape):
            # The search keeps a text apart by whether it ends in a blank; around every text it puts the same -1.
            text = tuple(token for token, _ in groupby(hypothesis.tokens) if token != self.blank)
            found[text] = float(np.logaddexp(found.get(text, -np.inf), hypothesis.score))
        return tuple(sorted(found.values(), reverse=True))


def _flashlight() -> Any:
    try:
        from flashlight.lib.text import decoder
    except ImportError:
        raise UserError(
            "an N-best (policy posterior, --nbest) needs flashlight-text, which is built for Python 3.12 and older; "
            "install it with: pip install 'espnet_ee[nbest]'"
        ) from None
    return decoder
