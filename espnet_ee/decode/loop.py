"""The loop that stops: one segment at a time, per utterance, also inside a batch, whatever engine computes the segments."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from espnet_ee.compute import MacTable
from espnet_ee.errors import UserError
from espnet_ee.policy.attending import AttentionConfig, Search
from espnet_ee.policy.base import ExitPolicy
from espnet_ee.policy.confidences import ConfidenceMap
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.evidence import ExitEvidence
from espnet_ee.policy.frames import FIELDS, Frames, evidence_of
from espnet_ee.policy.searching import SearchConfig
from espnet_ee.policy.table import EvidenceRow, macs_of_stop
from espnet_ee.search.beam import BeamSearch, GreedySearch, build_search, nbest_search
from espnet_ee.search.greedy import Hypothesis
from espnet_ee.search.joint import JointTexts
from espnet_ee.search.words import Word, words_of
from espnet_ee.text import tokens_to_text


class UtteranceError(UserError):
    """An utterance that cannot be recognised; ``place`` is its number in the batch, from 0."""

    def __init__(self, message: str, place: int) -> None:
        super().__init__(message)
        self.place = place


class OutOfMemoryError(UserError):
    """A batch, or one utterance, does not fit into memory."""


class SessionState(Protocol):
    """Where an engine stands with a batch, between two segments."""

    @property
    def layer(self) -> int:
        """Blocks computed so far: the exit layer that can be read, 0 before the first segment."""

    @property
    def feature_frames(self) -> Sequence[int]:
        """Length of each utterance, in the encoder's input frames."""


State = TypeVar("State", bound=SessionState)


class ExitSession(Protocol[State]):
    """An engine that computes an early-exit encoder segment by segment.

    Attributes:
        exit_layers: the model's exits, rising.
        macs: what the model costs.
        blank: blank id.
        tokens: the vocabulary.
        token_type: what they are; see :func:`espnet_ee.text.tokens_to_text`.
        sample_rate: of the audio it takes, in Hz; None: it takes features, or nobody told it.
        frame_seconds: length of an encoder frame; None: not known, so that words have no times.
    """

    exit_layers: tuple[int, ...]
    macs: MacTable
    blank: int
    tokens: Sequence[str]
    token_type: str
    sample_rate: int | None
    frame_seconds: float | None

    def use_threads(self, count: int) -> None:
        """Computes with so many CPU threads from now on."""

    def start(self, batch: Sequence[np.ndarray]) -> State:
        """Takes in utterances: samples (N,) in [-1, 1], or features (L, F); no block is computed yet.

        Raises:
            UtteranceError: one is empty, not finite or of another kind than the model was trained on.
        """

    def advance(self, state: State) -> State:
        """Computes the blocks up to the next exit, and no more."""

    def read(self, state: State, places: Sequence[int], want: frozenset[str]) -> list[Frames]:
        """Computes the exit's head for some utterances of the batch, and reduces its output where it lies.

        Args:
            state: at an exit.
            places: rows of the batch.
            want: fields of :class:`Frames` that are needed beside those that are always made: ``log_probs``, ``cluster_entropy`` or nothing.
        """

    def select(self, state: State, places: Sequence[int]) -> State:
        """Keeps some utterances of the batch, in this order; at least one."""

    def require_decoders(self) -> None:
        """Raises UserError if the exits have no attention decoders."""

    def attend(self, state: State, place: int, frames: Frames, config: AttentionConfig) -> JointTexts:
        """Searches with the exit's attention decoder.

        Args:
            state: at an exit.
            place: row of the batch.
            frames: what was read there, ``log_probs`` among it.
            config: how to search.
        """


def prepare_search(session: ExitSession[Any], search: Search) -> GreedySearch | BeamSearch | AttentionConfig:
    """What looks for the text of an exit's frames; with attention decoders the session does, as the configuration says.

    Raises:
        UserError: the model has none, a language model cannot be read, or no tokens spell a hotword.
    """
    if isinstance(search, AttentionConfig):
        session.require_decoders()
        return search
    return build_search(search, tuple(session.tokens), session.blank)


@dataclass(frozen=True)
class Recognition:
    """One utterance's result.

    Attributes:
        text: the words.
        tokens: the tokens.
        token_ids: their numbers.
        score: log-probability of the greedy path, or the score of the beam's best hypothesis (of attention and CTC the joint one).
        exit_layer: 1-based number of the last block that was computed.
        macs: multiply-accumulates spent: subsampling, blocks, the heads that were read, evidence, the
            searches of attention decoders.
        rows: the exits whose heads were read, in order; the last one gave the text. Where not every exit was kept, the
            others have no hypothesis, and of the evidence only what the policy reads.
        seconds: wall clock from the start of the batch to each of ``rows``, divided by the batch's size.
        words: those of the text with times and confidences (as the decoding configuration maps them), in order, inside the
            audio and without overlap; none where the session does not know how long a frame is, or an
            attention decoder says more than the frames can.
    """

    text: str
    tokens: tuple[str, ...]
    token_ids: tuple[int, ...]
    score: float
    exit_layer: int
    macs: int
    rows: tuple[EvidenceRow, ...]
    seconds: tuple[float, ...]
    words: tuple[Word, ...] = ()

    @property
    def evidence(self) -> ExitEvidence:
        """Evidence of the exit that gave the text."""
        return self.rows[-1].evidence


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
    if isinstance(batch, (np.ndarray, str)):
        raise UserError("a batch is a list of utterances; give [samples] for one")
    run = _new_run(session, config, len(batch), keep_every_exit, nbest)
    if not batch:
        return []
    state = session.start(batch)
    return run.results(state, [len(speech) for speech in batch])


def recognise_further(
    session: ExitSession[Any], config: DecodingConfig, passed: Sequence[SessionState], samples: int
) -> Recognition:
    """Recognises one utterance whose first exits are computed: what :func:`recognise` gives, which would compute them again.

    Args:
        session: the engine.
        config: when to stop.
        passed: where it stood at each of these exits, from the first one on; the policy may stop it at any of them.
        samples: how long it is.

    Raises:
        UserError: as :func:`recognise`.
    """
    return _new_run(session, config, 1).results(passed[-1], [samples], passed)[0]


def _new_run(session: ExitSession[Any], config: DecodingConfig, utterances: int, keep: bool = False, nbest: int = 0) -> _Run:
    policy = config.policy_for(session.exit_layers)
    size, tokens = max(nbest, policy.nbest), tuple(session.tokens)
    plain = SearchConfig() if isinstance(config.search, AttentionConfig) else config.search
    nbests = nbest_search(plain, size, tokens, session.blank) if size else None
    search = prepare_search(session, config.search)
    return _Run(session, policy, keep, search, nbests, size, config.confidences, utterances)


@dataclass
class _Utterance:
    """One utterance on its way through the encoder."""

    place: int
    feature_frames: int = 0
    samples: int = 0
    rows: list[EvidenceRow] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    result: Recognition = field(init=False)


class _Run:
    """One batch on its way through the encoder."""

    def __init__(
        self,
        session: ExitSession[Any],
        policy: ExitPolicy,
        keep: bool,
        search: GreedySearch | BeamSearch | AttentionConfig,
        nbests: BeamSearch | None,
        nbest: int,
        confidences: ConfidenceMap,
        size: int,
    ) -> None:
        self.session, self.policy, self.keep, self.search, self.nbests = session, policy, keep, search, nbests
        self.nbest, self.confidences = nbest, confidences
        self.started = time.perf_counter()
        self.utterances = [_Utterance(place) for place in range(size)]
        self.active = list(self.utterances)
        self.reads_heads = keep or bool(policy.reads)
        self.reads = FIELDS if keep else policy.reads
        self.attends_always = isinstance(search, AttentionConfig) and (keep or policy.needs_every_search)
        self.want = frozenset({"log_probs"} if nbests or search.needs_log_probs else ()) | (self.reads & {"cluster_entropy"})

    def results(self, state: SessionState, samples: Sequence[int], passed: Sequence[SessionState] = ()) -> list[Recognition]:
        """Goes up from a state, after having asked the policy at the exits that are passed already.

        Args:
            state: from where to go on.
            samples: length of each utterance.
            passed: the states at these exits.
        """
        for utterance, frames, length in zip(self.utterances, state.feature_frames, samples, strict=True):
            utterance.feature_frames, utterance.samples = frames, length
        for earlier in passed:
            if self.active:
                self.pass_exit(earlier)
        while self.active:
            state = self.session.advance(state)
            before, staying = len(self.active), self.pass_exit(state)
            if staying and len(staying) < before:
                state = self.session.select(state, staying)
        return [utterance.result for utterance in self.utterances]

    def pass_exit(self, state: SessionState) -> list[int]:
        """Reads the heads that are wanted and lets the finished utterances go; gives the places of the others."""
        places = list(range(len(self.active)))
        if not self.reads_heads:
            # A policy that reads nothing is asked first: only the heads of those that stop are computed.
            places = places if self._stops(state.layer, [ExitEvidence(state.layer)]) else []
        frames = self.session.read(state, places, self.want) if places else []
        texts = [self._attend(state, *read) if self.attends_always else None for read in zip(places, frames, strict=True)]
        evidence = [self._evidence(state.layer, *read) for read in zip(frames, texts, strict=True)]
        elapsed = (time.perf_counter() - self.started) / len(self.utterances)
        going_on = [] if places else list(range(len(self.active)))
        for place, reading, exit_, joint in zip(places, frames, evidence, texts, strict=True):
            utterance = self.active[place]
            hypothesis = self._hypothesis(reading, joint) if self.keep else None
            utterance.rows.append(self._row(utterance, exit_, reading, joint, hypothesis))
            utterance.seconds.append(elapsed)
            if self._stops(state.layer, [row.evidence for row in utterance.rows]):
                self._check(utterance, reading)
                joint = joint or self._attend(state, place, reading)
                utterance.result = self._result(utterance, joint, hypothesis or self._hypothesis(reading, joint))
            else:
                going_on.append(place)
        self.active = [self.active[place] for place in going_on]
        return going_on

    def _stops(self, layer: int, evidence: Sequence[ExitEvidence]) -> bool:
        return layer == self.session.exit_layers[-1] or self.policy.should_stop(evidence)

    def _attend(self, state: SessionState, place: int, frames: Frames) -> JointTexts | None:
        """What the exit's attention decoder finds; None where nobody asks for it, and of numbers that are broken."""
        if not isinstance(self.search, AttentionConfig) or not np.isfinite(frames.log_confidence).all():
            return None
        return self.session.attend(state, place, frames, self.search)

    def _evidence(self, layer: int, frames: Frames, joint: JointTexts | None) -> ExitEvidence:
        self._check_clusters(layer, frames)
        evidence = evidence_of(layer, frames, self.session.blank, self.reads)
        if self.nbests is not None and frames.log_probs is not None:
            evidence = replace(evidence, nbest_scores=self.nbests.scores(frames.log_probs)[: self.nbest])
        return evidence if joint is None else joint.added_to(evidence)

    def _check_clusters(self, layer: int, frames: Frames) -> None:
        if frames.cluster_entropy is None and "cluster_entropy" in self.policy.reads and layer != self.session.exit_layers[-1]:
            raise UserError(
                f"policy {self.policy.name}: the model, or its export, has no cluster heads; train them with exit_terms: clusters, or "
                "choose another policy"
            )

    def _row(
        self,
        utterance: _Utterance,
        evidence: ExitEvidence,
        frames: Frames,
        joint: JointTexts | None,
        hypothesis: Hypothesis | None,
    ) -> EvidenceRow:
        macs, text, confidences = self.session.macs, "", tuple[float, ...]()
        if hypothesis is not None:
            tokens = self._strings(hypothesis.tokens)
            text = self._text(tokens)
            if np.isfinite(frames.log_confidence).all() and len(hypothesis.spans) == len(tokens):
                words = words_of(tokens, hypothesis.spans, 1.0, token_type=self.session.token_type)
                confidences = tuple(word.confidence for word in words)
        return EvidenceRow(
            evidence,
            text,
            macs.encoder_macs(evidence.layer, utterance.feature_frames),
            macs.head_macs(evidence.layer, evidence.frames),
            confidences,
            0 if joint is None else joint.macs,
        )

    def _hypothesis(self, frames: Frames, joint: JointTexts | None) -> Hypothesis:
        if not isinstance(self.search, AttentionConfig):
            return self.search(frames)
        if joint is None or frames.log_probs is None:
            return Hypothesis((), math.nan, ())
        return joint.hypothesis(frames.log_probs, self.session.blank)

    def _strings(self, tokens: Sequence[int]) -> tuple[str, ...]:
        return tuple(self.session.tokens[token] for token in tokens)

    def _text(self, tokens: Sequence[str]) -> str:
        return tokens_to_text(tokens, self.session.token_type)

    def _check(self, utterance: _Utterance, frames: Frames) -> None:
        if not np.isfinite(frames.log_confidence).all():
            layer = utterance.rows[-1].evidence.layer
            raise UtteranceError(
                f"the model's output at exit {layer} is not a number (NaN, or an overflow inside the model), so there is no "
                "text; its parameters are damaged, or the audio is far from what it was trained on",
                utterance.place,
            )

    def _result(self, utterance: _Utterance, joint: JointTexts | None, hypothesis: Hypothesis) -> Recognition:
        """The text is made here, where the utterance stops, and not at the exits it passed."""
        rows, tokens = utterance.rows, self._strings(hypothesis.tokens)
        rows[-1] = replace(rows[-1], hypothesis=self._text(tokens))
        if joint is not None:
            rows[-1] = replace(rows[-1], evidence=joint.added_to(rows[-1].evidence), decoder_macs=joint.macs)
        return Recognition(
            text=rows[-1].hypothesis,
            tokens=tokens,
            token_ids=hypothesis.tokens,
            score=hypothesis.score,
            exit_layer=rows[-1].evidence.layer,
            macs=macs_of_stop(rows, len(rows) - 1, self.reads_heads, self.attends_always),
            rows=tuple(rows),
            seconds=tuple(utterance.seconds),
            words=self._words(utterance, tokens, hypothesis),
        )

    def _words(self, utterance: _Utterance, tokens: Sequence[str], hypothesis: Hypothesis) -> tuple[Word, ...]:
        rate, frame_seconds = self.session.sample_rate, self.session.frame_seconds
        if rate is None or frame_seconds is None or len(hypothesis.spans) < len(tokens):
            return ()
        words = words_of(tokens, hypothesis.spans, frame_seconds, utterance.samples / rate, self.session.token_type)
        layer = utterance.rows[-1].evidence.layer
        return tuple(replace(word, confidence=self.confidences(layer, word.confidence)) for word in words)
