"""The loop that stops: one segment at a time, per utterance, also inside a batch, whatever engine computes the segments."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from espnet_ee.decode.reading import ExitReader, Passage
from espnet_ee.decode.recognition import Recognition
from espnet_ee.decode.session import ExitSession, SessionState
from espnet_ee.errors import UserError
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.evidence import ExitEvidence


def recognise(
    session: ExitSession[Any],
    config: DecodingConfig,
    batch: Sequence[np.ndarray],
    keep_every_exit: bool = False,
    nbest: int = 0,
) -> list[Recognition]:
    """Recognises a batch; every utterance leaves it as soon as the policy lets it.

    Results do not depend on what an utterance is batched with.

    Args:
        session: the engine.
        config: when to stop.
        batch: samples (N,) in [-1, 1], or features (L, F) for a model trained on extracted features.
        keep_every_exit: reads every passed head, all its evidence and its text, even where the policy needs none.
        nbest: with every exit kept: size of an N-best list at every exit; 0: only if the policy reads one.

    Returns:
        One result per utterance, in order.

    Raises:
        UtteranceError: an utterance cannot be recognised, or the model's output for it is not finite.
        OutOfMemoryError: fewer at once may fit.
        UserError: the policy does not fit the model, a language model cannot be read, or no tokens spell a hotword.
    """
    if isinstance(batch, (np.ndarray, str)) or not isinstance(batch, Sequence):
        raise UserError("a batch is a list of utterances; give [samples] for one")
    run = _Run(session, ExitReader(session, config, keep_every_exit, nbest), len(batch))
    if not batch:
        return []
    state = session.start(batch)
    return run.recognitions(state, [len(speech) for speech in batch])


def recognise_further(
    session: ExitSession[Any], config: DecodingConfig, passed: Sequence[SessionState], samples: int
) -> Recognition:
    """Recognises one utterance whose first exits are computed: what :func:`recognise` gives, which would compute them again.

    ``passed`` is where it stood at each of these exits, from the first one on; the policy may stop it at any of them.
    """
    run = _Run(session, ExitReader(session, config, keep=False, nbest=0), 1)
    return run.recognitions(passed[-1], [samples], passed)[0]


class _Run:
    """One batch on its way through the encoder."""

    def __init__(self, session: ExitSession[Any], reader: ExitReader, size: int) -> None:
        self.session, self.reader = session, reader
        self.started = time.perf_counter()
        self.passages = [Passage(number) for number in range(size)]
        self.active = list(self.passages)
        self.results: dict[int, Recognition] = {}

    def recognitions(
        self, state: SessionState, samples: Sequence[int], passed: Sequence[SessionState] = ()
    ) -> list[Recognition]:
        """Goes up from a state, after having asked the policy at the exits that are passed already."""
        for passage, frames, length in zip(self.passages, state.feature_frames, samples, strict=True):
            passage.feature_frames, passage.samples = frames, length
        for earlier in passed:
            if self.active:
                self.pass_exit(earlier)
        while self.active:
            state = self.session.advance(state)
            before, staying = len(self.active), self.pass_exit(state)
            if staying and len(staying) < before:
                state = self.session.select(state, staying)
        return [self.results[passage.number] for passage in self.passages]

    def pass_exit(self, state: SessionState) -> list[int]:
        """Reads the heads that are wanted and lets the finished utterances go; gives the places of the others."""
        places = list(range(len(self.active)))
        if not self.reader.reads_all and not self._stops(state.layer, [ExitEvidence(state.layer)]):
            self.reader.pass_by(state, self.active)
            return places  # a policy that reads nothing is asked first: only the heads of those that stop are computed
        readings = self.reader.read(state, places)
        elapsed = (time.perf_counter() - self.started) / len(self.passages)
        going_on = []
        for place, reading in zip(places, readings, strict=True):
            passage = self.active[place]
            passage.readings.append(reading)
            passage.evidence.append(reading.evidence)
            passage.seconds.append(elapsed)
            if state.layer == self.reader.word_exit:
                passage.word_log_probs = reading.frames.log_probs
            if self._stops(state.layer, passage.evidence):
                self.results[passage.number] = self.reader.recognition(state, place, passage)
                continue
            going_on.append(place)
            if reading.frames.log_probs is not None:  # large
                reading.frames = replace(reading.frames, log_probs=None)
        self.active = [self.active[place] for place in going_on]
        return going_on

    def _stops(self, layer: int, evidence: Sequence[ExitEvidence]) -> bool:
        return layer == self.session.exit_layers[-1] or self.reader.policy.should_stop(evidence)
