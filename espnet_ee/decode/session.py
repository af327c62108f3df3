"""What the loop that stops asks of an engine, which computes an early-exit encoder segment by segment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from espnet_ee.compute import MacTable
from espnet_ee.data.audio import check_scale
from espnet_ee.errors import UserError
from espnet_ee.policy.attending import AttentionConfig
from espnet_ee.policy.frames import Frames
from espnet_ee.search.joint import JointTexts


class UtteranceError(UserError):
    """An utterance that cannot be recognised; ``place`` is its number in the batch, from 0."""

    def __init__(self, message: str, place: int) -> None:
        super().__init__(message)
        self.place = place


class OutOfMemoryError(UserError):
    """A batch, or one utterance, does not fit into memory."""


def usable_threads(count: int) -> int:
    """So many threads, or as many as there are processors: more would slow a process down by hundreds, or end it."""
    return min(count, os.cpu_count() or count)


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
        """Computes with so many CPU threads from now on, at most as many as the machine has processors."""

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
        """Searches with the exit's attention decoder in a row of the batch, of which ``frames`` (``log_probs`` among it) were read."""


def log_probs_at(session: ExitSession[Any], speech: np.ndarray, layer: int) -> np.ndarray:
    """What an exit says of one utterance (T, V); no block above it is computed."""
    state = session.start([speech])
    while state.layer < layer:
        state = session.advance(state)
    [frames] = session.read(state, [0], frozenset({"log_probs"}))
    assert frames.log_probs is not None
    return frames.log_probs


def check_utterance(speech: np.ndarray, dimensions: int | None) -> None:
    """Raises UserError unless an engine can recognise it: samples (N,), or features (L, F) for a model that takes F ``dimensions``."""
    if not isinstance(speech, np.ndarray) or isinstance(speech, np.ma.MaskedArray):
        raise UserError(f"an utterance is an array of samples, not {type(speech).__name__}; transcribe() takes files")
    if dimensions is None and speech.ndim != 1:
        raise UserError("the model takes audio, not features: give samples (a wav.scp, and no feats.scp)")
    if dimensions is not None and (speech.ndim != 2 or speech.shape[1] != dimensions):
        raise UserError(
            f"the model takes stored features of {dimensions} dimensions, not an array of {speech.shape}: give such (a feats.scp), or "
            "make it a model on audio (espnet-ee raw-audio)"
        )
    if len(speech) == 0:
        raise UserError("an utterance without samples cannot be recognised; leave it out")
    if not np.issubdtype(speech.dtype, np.floating):
        raise UserError(f"samples must be floats in [-1, 1], not {speech.dtype}; transcribe(samples, rate) scales integers")
    if not np.isfinite(speech).all():
        raise UserError("the audio holds values that are not finite; repair or drop it")
    if dimensions is None:
        check_scale(speech)
