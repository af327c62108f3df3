"""Forced alignment: when the words of a known text are said, by one exit of a model."""

from __future__ import annotations

from typing import Any

import numpy as np

from espnet_ee.decode.session import ExitSession, log_probs_at
from espnet_ee.errors import UserError
from espnet_ee.search.align import Speller, aligned
from espnet_ee.search.words import Word, shifted, words_of


class Aligner:
    """Aligns texts with audio by one exit of a model; no block above it is computed.

    Args:
        session: the engine.
        layer: the exit; None: the last one.
        shift: seconds by which words' starts and ends are moved; see :class:`espnet_ee.policy.decoding.DecodingConfig`.

    Raises:
        UserError: there is no such exit, or the model does not know how long its frames are.
    """

    def __init__(self, session: ExitSession[Any], layer: int | None = None, shift: tuple[float, float] = (0.0, 0.0)) -> None:
        self.session, self.layer, self.shift = session, session.exit_layers[-1] if layer is None else layer, shift
        if self.layer not in session.exit_layers:
            raise UserError(f"no exit after layer {layer}; the model's exits are {', '.join(map(str, session.exit_layers))}")
        if session.sample_rate is None or session.frame_seconds is None:
            raise UserError(
                "the model does not tell how long its frames are, so words have no times; take one that takes audio"
            )
        self._rate, self._frame_seconds = session.sample_rate, session.frame_seconds
        self._speller = Speller(session.tokens, session.blank)

    def __call__(self, speech: np.ndarray, text: str) -> tuple[Word, ...]:
        """The words of a text with their times and confidences, by the samples (N,) in [-1, 1] in which it is said.

        Raises:
            UserError: the tokens cannot spell the text, the audio is too short for it, or the model's output is broken.
        """
        graph = self._speller(text)
        log_probs = log_probs_at(self.session, speech, self.layer)
        if np.isnan(log_probs).any():
            raise UserError(f"the model's output at exit {self.layer} is not a number; its parameters are damaged")
        placed, seconds = aligned(log_probs, graph, self.session.blank), len(speech) / self._rate
        if placed is None:
            raise UserError(f"{seconds:.2f} s are too short for its text of {len(text.split())} words; mend one of them")
        tokens, spans = [self.session.tokens[token] for token in placed[0]], placed[1]
        return shifted(words_of(tokens, spans, self._frame_seconds, seconds), self.shift, seconds)
