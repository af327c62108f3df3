"""What is made of an exit that was read: its evidence, its line of an evidence table and, where the utterance stops, its text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from espnet_ee.decode.recognition import Recognition
from espnet_ee.decode.session import ExitSession, SessionState, UtteranceError
from espnet_ee.errors import UserError
from espnet_ee.policy.attending import AttentionConfig, Search
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.evidence import ExitEvidence
from espnet_ee.policy.frames import FIELDS, FrameEvidence, Frames, evidence_of, read_of
from espnet_ee.policy.searching import SearchConfig
from espnet_ee.policy.table import EvidenceRow, macs_of_stop
from espnet_ee.search.align import aligned, chain
from espnet_ee.search.beam import BeamSearch, GreedySearch, build_search, nbest_search
from espnet_ee.search.greedy import Hypothesis, TokenSpan
from espnet_ee.search.joint import JointTexts
from espnet_ee.search.words import Word, shifted, words_of
from espnet_ee.text import tokens_to_text

_WORDS = frozenset({"log_probs"})  # what aligns a text


@dataclass(slots=True)
class Reading:
    """What an exit whose head was read says of one utterance.

    Attributes:
        frames: as the head says them; without log-probabilities once the utterance has gone on.
        evidence: what a policy may look at.
        joint: what the attention decoder and the head say together; None: nobody asked so far.
        hypothesis: the text; None: likewise.
    """

    frames: Frames
    evidence: ExitEvidence
    joint: JointTexts | None
    hypothesis: Hypothesis | None


@dataclass
class Passage:
    """What an utterance's way through the encoder leaves.

    Attributes:
        number: of the utterance in its batch, from 0.
        feature_frames: its length in the encoder's input frames.
        samples: and as it came.
        word_log_probs: what the exit by which words get their times says of it (T, V); None: not passed, or nobody asks.
        word_macs: multiply-accumulates of that exit's head, where nobody else reads it.
        readings: of the exits that were read.
        evidence: of each.
        seconds: since the batch began, at each of them, divided by the batch's size.
    """

    number: int
    feature_frames: int = 0
    samples: int = 0
    word_log_probs: np.ndarray | None = None
    word_macs: int = 0
    readings: list[Reading] = field(default_factory=list)
    evidence: list[ExitEvidence] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def prepare_search(session: ExitSession[Any], search: Search) -> GreedySearch | BeamSearch | AttentionConfig:
    """What looks for the text of an exit's frames; with attention decoders the session does, as the configuration says.

    Raises:
        UserError: the model has none, a language model cannot be read, or no tokens spell a hotword.
    """
    if isinstance(search, AttentionConfig):
        session.require_decoders()
        return search
    return build_search(search, tuple(session.tokens), session.blank)


class ExitReader:
    """Reads exits as a decoding configuration wants it.

    Args:
        session: the engine.
        config: the policy that reads evidence, and how texts are looked for.
        keep: makes all evidence and the text of every exit.
        nbest: with every exit kept: size of an N-best list at every exit; 0: only if the policy reads one.

    Raises:
        UserError: the policy does not fit the model, or see :func:`prepare_search`.
    """

    def __init__(self, session: ExitSession[Any], config: DecodingConfig, keep: bool, nbest: int) -> None:
        self.session, self.keep, self.confidences, self.shift = session, keep, config.confidences, config.word_shift
        self.word_exit = config.word_exit
        self.policy = policy = config.policy_for(session.exit_layers)
        self.nbest = max(nbest, policy.nbest)
        plain = SearchConfig() if isinstance(config.search, AttentionConfig) else config.search
        self.nbests = nbest_search(plain, self.nbest, tuple(session.tokens), session.blank) if self.nbest else None
        self.search = search = prepare_search(session, config.search)
        self.reads = FIELDS if keep else policy.reads
        self.reads_all = bool(self.reads)  # the heads of exits that are passed are read, too
        self.attends_always = isinstance(search, AttentionConfig) and (keep or policy.needs_every_search)
        self.want = frozenset({"log_probs"} if self.nbests or search.needs_log_probs else ()) | (
            self.reads & {"cluster_entropy"}
        )

    def read(self, state: SessionState, places: Sequence[int]) -> list[Reading]:
        """Reads the exit that a batch stands at, for some of its rows."""
        want = self.want | _WORDS if state.layer == self.word_exit else self.want
        frames = self.session.read(state, places, want) if places else []
        return [self._reading(state, *read) for read in zip(places, frames, strict=True)]

    def pass_by(self, state: SessionState, passages: Sequence[Passage]) -> None:
        """Passes an exit that nobody else reads; words may get their times by it."""
        if state.layer == self.word_exit and passages:
            for passage, frames in zip(passages, self.session.read(state, range(len(passages)), _WORDS), strict=True):
                passage.word_log_probs = frames.log_probs
                passage.word_macs = self.session.macs.head_macs(state.layer, len(frames.labels))

    def _reading(self, state: SessionState, place: int, frames: Frames) -> Reading:
        joint = self._attend(state, place, frames) if self.attends_always else None
        evidence = self._evidence(state.layer, frames)
        evidence = evidence if joint is None else joint.added_to(evidence)
        return Reading(frames, evidence, joint, self._hypothesis(frames, joint) if self.keep else None)

    def _attend(self, state: SessionState, place: int, frames: Frames) -> JointTexts | None:
        """What the exit's attention decoder finds; None where nobody asks for it, and of numbers that are broken."""
        if not isinstance(self.search, AttentionConfig) or not _is_finite(frames):
            return None
        return self.session.attend(state, place, frames, self.search)

    def _evidence(self, layer: int, frames: Frames) -> ExitEvidence:
        if frames.cluster_entropy is None and "cluster_entropy" in self.policy.reads and layer != self.session.exit_layers[-1]:
            raise UserError(
                f"policy {self.policy.name}: the model, or its export, has no cluster heads; train them with exit_terms: clusters, or "
                "choose another policy"
            )
        if frames.log_probs is None and len(frames.labels):  # else a table would stay as long as the evidence
            return FrameEvidence(layer, frames, self.session.blank)
        evidence = evidence_of(layer, frames, self.session.blank, self.reads)
        if self.nbests is not None and frames.log_probs is not None:
            evidence = replace(evidence, nbest_scores=self.nbests.scores(frames.log_probs)[: self.nbest])
        return evidence

    def _hypothesis(self, frames: Frames, joint: JointTexts | None) -> Hypothesis:
        if not isinstance(self.search, AttentionConfig):
            return self.search(frames)
        if joint is None or frames.log_probs is None:
            return Hypothesis((), math.nan, ())
        return joint.hypothesis(frames.log_probs, self.session.blank)

    def row(self, reading: Reading, feature_frames: int) -> EvidenceRow:
        """The exit's line in an evidence table; its text only where every exit's is made."""
        macs, hypothesis, evidence = self.session.macs, reading.hypothesis, read_of(reading.evidence, self.reads)
        text, confidences = "", tuple[float, ...]()
        if hypothesis is not None:
            tokens = self._strings(hypothesis)
            text = self._text(tokens)
            if _is_finite(reading.frames) and len(hypothesis.spans) == len(tokens):
                words = words_of(tokens, hypothesis.spans, 1.0, token_type=self.session.token_type)
                confidences = tuple(word.confidence for word in words)
        return EvidenceRow(
            evidence,
            text,
            macs.encoder_macs(evidence.layer, feature_frames),
            macs.head_macs(evidence.layer, evidence.frames),
            confidences,
            0 if reading.joint is None else reading.joint.macs,
        )

    def recognition(self, state: SessionState, place: int, passage: Passage) -> Recognition:
        """The result of an utterance that stops; its text is made here, as are the lines of all its exits, and not as it passed them:
        right after a segment everything is several times as dear.

        Raises:
            UtteranceError: what the model says of it is not finite.
        """
        reading = passage.readings[-1]
        frames, layer = reading.frames, state.layer
        if not _is_finite(frames):
            raise UtteranceError(
                f"the model's output at exit {layer} is not a number (NaN, or an overflow inside the model), so there is no "
                "text; its parameters are damaged, or the audio is far from what it was trained on",
                passage.number,
            )
        joint = reading.joint or self._attend(state, place, frames)
        hypothesis = reading.hypothesis or self._hypothesis(frames, joint)
        tokens = self._strings(hypothesis)
        *below, last = (self.row(reading, passage.feature_frames) for reading in passage.readings)
        last = replace(last, hypothesis=self._text(tokens))
        if joint is not None:
            last = replace(last, evidence=joint.added_to(last.evidence), decoder_macs=joint.macs)
        rows = (*below, last)
        return Recognition(
            text=last.hypothesis,
            tokens=tokens,
            token_ids=hypothesis.tokens,
            score=hypothesis.score,
            exit_layer=layer,
            macs=macs_of_stop(rows, len(rows) - 1, self.reads_all, self.attends_always) + passage.word_macs,
            rows=rows,
            seconds=tuple(passage.seconds),
            words=self._words(layer, frames, hypothesis, tokens, passage),
        )

    def _spans(self, layer: int, frames: Frames, hypothesis: Hypothesis, passage: Passage) -> tuple[TokenSpan, ...]:
        """Where the tokens lie by the exit that words' times are taken from, as sure as the exit is that stopped; as this one has it
        where that one was not passed, has other frames, or cannot be aligned."""
        own, log_probs = hypothesis.spans, passage.word_log_probs
        if log_probs is None or layer == self.word_exit:
            return own
        if len(log_probs) != len(frames.labels) or np.isnan(log_probs).any():
            return own
        placed = aligned(log_probs, chain(hypothesis.tokens, self.session.blank), self.session.blank)
        if placed is None:
            return own
        return tuple(replace(span, log_probability=said.log_probability) for span, said in zip(placed[1], own, strict=True))

    def _words(
        self, layer: int, frames: Frames, hypothesis: Hypothesis, tokens: Sequence[str], passage: Passage
    ) -> tuple[Word, ...]:
        rate, frame_seconds = self.session.sample_rate, self.session.frame_seconds
        if rate is None or frame_seconds is None or len(hypothesis.spans) < len(tokens):
            return ()
        seconds, spans = passage.samples / rate, self._spans(layer, frames, hypothesis, passage)
        words = words_of(tokens, spans, frame_seconds, seconds, self.session.token_type)
        words = shifted(words, self.shift, seconds)
        return tuple(replace(word, confidence=self.confidences(layer, word.confidence)) for word in words)

    def _strings(self, hypothesis: Hypothesis) -> tuple[str, ...]:
        tokens = self.session.tokens
        if not all(0 <= token < len(tokens) for token in hypothesis.tokens):  # a damaged export: a label is what its graph says
            raise UserError(f"the model gives a token beyond the {len(tokens)} of its list (tokens.txt); export it again")
        return tuple(tokens[token] for token in hypothesis.tokens)

    def _text(self, tokens: Sequence[str]) -> str:
        return tokens_to_text(tokens, self.session.token_type)


def _is_finite(frames: Frames) -> bool:
    return bool(np.isfinite(frames.log_confidence).all())
