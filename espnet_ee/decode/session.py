"""What the loop that stops asks of an engine, which computes an early-exit encoder segment by segment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from espnet_ee.compute import MacTable
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
        """Searches with the exit's attention decoder.

        Args:
            state: at an exit.
            place: row of the batch.
            frames: what was read there, ``log_probs`` among it.
            config: how to search.
        """
