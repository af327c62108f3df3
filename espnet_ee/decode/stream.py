"""Recognition while somebody speaks: texts of a shallow exit, chunk by chunk; those of deeper exits where the speaker pauses.

A stream is cut into *stretches* where the shallow exit has had nothing but blanks for a while (as Kaldi's and sherpa's
endpoint rules do it). Within a stretch each chunk goes through the blocks below the shallow exit once, and its output is
kept; at the end of the stretch the blocks above take all of it at once, as deep as the policy wants. So a stretch's text is
what the model, under the same chunk mask, makes of its audio as one utterance, and what is held is bounded by the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from espnet_ee.decode.loop import recognise_further
from espnet_ee.decode.recognition import Recognition
from espnet_ee.decode.session import ExitSession, SessionState, check_utterance
from espnet_ee.errors import UsageError
from espnet_ee.policy.decoding import DecodingConfig
from espnet_ee.policy.frames import Frames
from espnet_ee.search.greedy import greedy
from espnet_ee.search.words import Word
from espnet_ee.text import tokens_to_text


class Stretch(Protocol):
    """A stretch of audio on its way through the blocks below the shallow exit: ``frames`` of the encoder are computed."""

    frames: int

    def advance(self, samples: np.ndarray, frames: int) -> Frames:
        """Computes up to so many frames, and gives what the shallow exit says of all of them.

        Args:
            samples: the stretch from its beginning, as far as it is known.
            frames: a chunk more than there are; fewer only at the end.
        """

    def states(self) -> Sequence[SessionState]:
        """Where it stands at each exit up to the shallow one."""


class StreamSession(ExitSession[Any], Protocol):
    """An engine that computes stretches by and by, too; ``chunk`` counts the encoder frames of one."""

    chunk: int

    def new_stretch(self) -> Stretch:
        """The beginning of a stretch."""

    def final_samples(self, frames: int) -> int:
        """Samples after which so many frames of a stretch stay as they are, whatever comes."""

    def frames_of(self, samples: int) -> int:
        """Frames of a stretch that ends after so many samples, one or more."""


@dataclass(frozen=True)
class Endpoint:
    """Where a stretch ends.

    Attributes:
        silence: seconds of blanks after words.
        nothing: seconds of blanks without a word before; then there is no text, and no deeper exit is asked.
        longest: seconds of a stretch, whatever is said.

    Raises:
        UsageError: not above 0.
    """

    silence: float = 0.8
    nothing: float = 2.4
    longest: float = 20.0

    def __post_init__(self) -> None:
        for name, seconds in vars(self).items():
            if not seconds > 0:
                raise UsageError(f"endpoint: {name} is {seconds} seconds; give more than 0")

    def reached(self, seconds: float, blank_seconds: float) -> bool:
        """Whether a stretch of so many seconds, the last of them blank, is at its end."""
        silence = self.silence if blank_seconds < seconds else self.nothing
        return blank_seconds >= silence or seconds >= self.longest


@dataclass(frozen=True)
class Final:
    """A stretch that is over.

    Attributes:
        start: of the stretch, in seconds on the stream's clock.
        end: likewise.
        recognition: what was said in it; its words' times are on the stretch's clock.
    """

    start: float
    end: float
    recognition: Recognition

    @property
    def text(self) -> str:
        """What was said."""
        return self.recognition.text

    @property
    def words(self) -> tuple[Word, ...]:
        """The words on the stream's clock."""
        return tuple(word.later(self.start) for word in self.recognition.words)


@dataclass(frozen=True)
class Partial:
    """What is known so far.

    Attributes:
        text: of the stretch that goes on, by the shallow exit; it may change.
        start: of that stretch, in seconds on the stream's clock.
        finals: the stretches with words that ended since the last time; they do not change any more.
    """

    text: str
    start: float
    finals: tuple[Final, ...] = ()


class SpeechStream:
    """One speaker's audio as it comes. Results do not depend on the sizes of the pieces.

    The configuration says how deep a stretch goes when it ends, and how its text is looked for.

    Raises:
        UserError: the policy does not fit the model.
    """

    def __init__(self, session: StreamSession, config: DecodingConfig, endpoint: Endpoint) -> None:
        config.policy_for(session.exit_layers)
        assert session.sample_rate and session.frame_seconds, "of a stream there is a clock"
        self.session, self.config, self.endpoint = session, config, endpoint
        self._rate, self._frame_seconds = session.sample_rate, session.frame_seconds
        self._before = 0  # samples before the stretch
        self._begin(np.zeros(0, np.float32))

    def _begin(self, samples: np.ndarray) -> None:
        self._stretch, self._pieces, self._count = self.session.new_stretch(), [samples], len(samples)
        self._frames: Frames | None = None

    def feed(self, samples: np.ndarray) -> Partial:
        """Takes what came next, and computes the chunks that are complete.

        Args:
            samples: (N,) floats in [-1, 1] at the model's rate; any number, none included.

        Raises:
            UserError: they are something else, or a stretch cannot be recognised.
        """
        if not isinstance(samples, np.ndarray) or samples.size:
            check_utterance(samples, None)
            self._pieces.append(samples.astype(np.float32))
            self._count += len(samples)
        finals = []
        while self._count >= self.session.final_samples(frames := self._stretch.frames + self.session.chunk):
            self._frames = self._stretch.advance(self._samples(), frames)
            finals += self._end_where_silent(self._frames)
        return self._partial(finals)

    def finish(self) -> Partial:
        """The end of the audio: what is left of it becomes final. What is fed then is another beginning on the same clock."""
        finals = []
        if self._count:
            last = self.session.frames_of(self._count)
            while self._stretch.frames < last:
                frames = min(last, self._stretch.frames + self.session.chunk)
                self._frames = self._stretch.advance(self._samples(), frames)
            finals = self._end(self._count)
        return self._partial(finals)

    def _samples(self) -> np.ndarray:
        """The stretch so far."""
        self._pieces = [np.concatenate(self._pieces)]
        return self._pieces[0]

    def _end_where_silent(self, frames: Frames) -> list[Final]:
        spoken = (frames.labels != self.session.blank).nonzero()[0]
        blank = len(frames.labels) - (int(spoken[-1]) + 1 if len(spoken) else 0)
        if not self.endpoint.reached(len(frames.labels) * self._frame_seconds, blank * self._frame_seconds):
            return []
        # The next stretch begins a chunk of silence earlier: a sound at its end may not have become a token yet.
        count, chunk = len(frames.labels), self.session.chunk
        kept = count - min(blank, chunk, count - chunk)
        return self._end(round(kept * self._frame_seconds * self._rate))

    def _end(self, next_start: int) -> list[Final]:
        """Ends the stretch; the next one begins so many samples after it."""
        start, samples, stretch, frames = self._before / self._rate, self._samples(), self._stretch, self._frames
        self._before += next_start
        self._begin(samples[next_start:])
        if frames is None or not (frames.labels != self.session.blank).any():
            return []
        length = min(len(samples), round(len(frames.labels) * self._frame_seconds * self._rate))
        recognition = recognise_further(self.session, self.config, stretch.states(), length)
        return [Final(start, start + length / self._rate, recognition)] if recognition.text else []

    def _partial(self, finals: Sequence[Final]) -> Partial:
        tokens = () if self._frames is None else greedy(self._frames, self.session.blank).tokens
        text = tokens_to_text([self.session.tokens[token] for token in tokens], self.session.token_type)
        return Partial(text, self._before / self._rate, tuple(finals))
