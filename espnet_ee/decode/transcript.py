"""What was said in a recording of any length: recognised piece by piece, on the recording's clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from espnet_ee.data.audio_files import AudioFile
from espnet_ee.data.recording import Recording
from espnet_ee.decode.recognition import Recognition
from espnet_ee.errors import UserError
from espnet_ee.search.words import Word

Recognised = tuple[Recognition, str]
"""A recognition, and the name of the policy that it was made with."""
Recognise = Callable[[Sequence[np.ndarray]], list[Recognised]]


@dataclass(frozen=True)
class Part:
    """A piece of a recording.

    Attributes:
        start: seconds on the recording's clock.
        seconds: how long it is.
        recognition: what was said in it; its words' times are on the piece's clock.
        policy: what decided where it stopped.
    """

    start: float
    seconds: float
    recognition: Recognition
    policy: str

    @property
    def words(self) -> tuple[Word, ...]:
        """The words on the recording's clock."""
        return tuple(word.later(self.start) for word in self.recognition.words)


@dataclass(frozen=True)
class Transcript:
    """What was said in a recording.

    Attributes:
        audio: the recording.
        seconds: how long it is.
        parts: its pieces, in order; a short recording is one.
    """

    audio: AudioFile
    seconds: float
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The words with blanks between."""
        return " ".join(part.recognition.text for part in self.parts if part.recognition.text)

    @cached_property
    def words(self) -> tuple[Word, ...]:
        """The words with their times, in order and without overlap; none where the model does not know how long a frame is."""
        return tuple(word for part in self.parts for word in part.words)

    @property
    def macs(self) -> int:
        """Multiply-accumulates spent."""
        return sum(part.recognition.macs for part in self.parts)

    @property
    def exit_layer(self) -> float:
        """Where it stopped; the mean of several pieces."""
        layers = [part.recognition.exit_layer for part in self.parts]
        return layers[0] if len(layers) == 1 else round(sum(layers) / len(layers), 2)

    @property
    def policy(self) -> str:
        """What decided where it stopped."""
        return ", ".join(dict.fromkeys(part.policy for part in self.parts))


@dataclass
class _Pending:
    """A recording, some of whose pieces are not recognised yet."""

    audio: AudioFile
    seconds: float = 0.0
    waiting: int = 0
    complete: bool = False
    failed: bool = False
    parts: list[Part] = field(default_factory=list)


@dataclass(frozen=True)
class _Job:
    """A piece to be recognised."""

    owner: _Pending
    start: float
    samples: np.ndarray


class Transcriber:
    """Recognises recordings; pieces, also of several, in batches. No more is held in memory than a batch of pieces.

    Args:
        open_recording: looks a file through; raises UserError.
        recognise: recognises pieces together; raises UserError.
        rate: sampling rate of the pieces in Hz.
        batch_size: pieces recognised together.
        fail: told of a recording that cannot be recognised, once; may raise what then ends all.
    """

    def __init__(
        self,
        open_recording: Callable[[AudioFile], Recording],
        recognise: Recognise,
        rate: int,
        batch_size: int,
        fail: Callable[[AudioFile, UserError], None],
    ) -> None:
        self._open, self._recognise, self._rate, self._size, self._fail = open_recording, recognise, rate, batch_size, fail
        self._pending: deque[_Pending] = deque()

    def __call__(self, files: Iterable[AudioFile]) -> Iterator[Transcript]:
        """The transcripts, in the files' order, each as soon as it is there; without those of files that fail."""
        batch: list[_Job] = []
        for job in self._jobs(files):
            batch.append(job)
            if len(batch) == self._size:
                self._run(batch)
                batch = []
                yield from self._finished()
        self._run(batch)
        yield from self._finished()

    def _jobs(self, files: Iterable[AudioFile]) -> Iterator[_Job]:
        for audio in files:
            owner = _Pending(audio)
            self._pending.append(owner)
            try:
                recording = self._open(audio)
                owner.seconds = recording.seconds
                for piece in recording.pieces():
                    if owner.failed:
                        break
                    owner.waiting += 1
                    yield _Job(owner, piece.start, piece.samples)
            except UserError as error:
                self._give_up(owner, error)
            owner.complete = True

    def _run(self, batch: Sequence[_Job]) -> None:
        """Recognises a batch; a piece that cannot be recognised does not take the others with it."""
        batch = [job for job in batch if not job.owner.failed]
        if not batch:
            return
        try:
            results = self._recognise([job.samples for job in batch])
        except UserError as error:
            if len(batch) > 1:
                for job in batch:
                    self._run([job])
                return
            place = f"at {batch[0].start:.2f} s: " if batch[0].start else ""
            return self._give_up(batch[0].owner, UserError(f"{batch[0].owner.audio.path}: {place}{error}"))
        for job, (recognition, policy) in zip(batch, results, strict=True):
            job.owner.waiting -= 1
            job.owner.parts.append(Part(job.start, len(job.samples) / self._rate, recognition, policy))

    def _give_up(self, owner: _Pending, error: UserError) -> None:
        owner.failed = True
        self._fail(owner.audio, error)

    def _finished(self) -> Iterator[Transcript]:
        while self._pending and (self._pending[0].failed or (self._pending[0].complete and not self._pending[0].waiting)):
            owner = self._pending.popleft()
            if not owner.failed:
                yield Transcript(owner.audio, owner.seconds, tuple(owner.parts))
