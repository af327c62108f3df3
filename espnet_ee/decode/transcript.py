"""What was said in a recording of any length: recognised piece by piece, on the recording's clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from espnet_ee.data.audio_files import AudioFile
from espnet_ee.data.recording import Recording
from espnet_ee.decode.journal import Journal
from espnet_ee.decode.recognition import Recognition
from espnet_ee.errors import UserError
from espnet_ee.search.words import Word

Recognised = tuple[Recognition, str]
"""A recognition, and the name of the policy that it was made with."""
Recognise = Callable[[Sequence[np.ndarray]], list[Recognised]]
"""Recognises pieces together; raises UserError."""
Submit = Callable[[Sequence[np.ndarray]], Callable[[], list[Recognised]]]
"""Begins to recognise pieces; what it gives waits for the end, and raises UserError."""
Remember = Callable[[AudioFile, Recording], AbstractContextManager[Journal]]
"""Opens the journal of a recording, which is closed when all is done with it."""


def when_asked(recognise: Recognise) -> Submit:
    """Recognises in this process, when the end is waited for."""
    return lambda batch: lambda: recognise(batch)


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
    """What was said in a recording of so many seconds; its pieces stand in order, and a short recording is one."""

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
    journal: Journal = field(default_factory=Journal)
    opened: ExitStack = field(default_factory=ExitStack)

    def open(self, journal: AbstractContextManager[Journal]) -> dict[str, Recognised]:
        """Opens the journal; gives the pieces of an earlier run, by where they start."""
        self.journal = self.opened.enter_context(journal)
        names = {name: name.partition(" ") for name in self.journal.results}
        return {start: (self.journal.results[name], policy) for name, (start, _, policy) in names.items()}


class _Job(NamedTuple):
    """A piece to be recognised; ``place`` is where it starts, for the recording's journal."""

    owner: _Pending
    start: float
    samples: np.ndarray

    @property
    def place(self) -> str:
        return f"{self.start:.6f}"


class Transcriber:
    """Recognises recordings; pieces, also of several, in batches. No more is held in memory than the batches under way.

    Args:
        open_recording: looks a file through; raises UserError.
        submit: begins to recognise a batch.
        rate: sampling rate of the pieces in Hz.
        batch_size: pieces recognised together.
        fail: told of a recording that cannot be recognised, once; may raise what then ends all.
        ahead: batches that are begun before the first one's end is waited for.
        remember: the journal of a recording: its pieces of an earlier run are not recognised again.
        advance: told of each piece, when it is done, its seconds.
    """

    def __init__(
        self,
        open_recording: Callable[[AudioFile], Recording],
        submit: Submit,
        rate: int,
        batch_size: int,
        fail: Callable[[AudioFile, UserError], None],
        ahead: int = 0,
        remember: Remember = lambda audio, recording: nullcontext(Journal()),
        advance: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._open, self._submit, self._rate, self._size, self._fail = open_recording, submit, rate, batch_size, fail
        self._ahead, self._remember, self._advance = ahead, remember, advance
        self._pending: deque[_Pending] = deque()

    def __call__(self, files: Iterable[AudioFile]) -> Iterator[Transcript]:
        """The transcripts, in the files' order, each as soon as it is there; without those of files that fail."""
        under_way: deque[tuple[list[_Job], Callable[[], list[Recognised]]]] = deque()
        try:
            for batch in self._batches(files):
                if batch:
                    under_way.append((batch, self._begin(batch)))
                while len(under_way) > (self._ahead if batch else 0):
                    self._finish(*under_way.popleft())
                    yield from self._finished()
            yield from self._finished()
        except BaseException as error:
            for owner in self._pending:
                owner.opened.__exit__(type(error), error, error.__traceback__)
            raise

    def _batches(self, files: Iterable[AudioFile]) -> Iterator[list[_Job]]:
        """The pieces that are to be recognised; an empty batch ends them."""
        batch: list[_Job] = []
        for job in self._jobs(files):
            batch.append(job)
            if len(batch) == self._size:
                yield batch
                batch = []
        if batch:
            yield batch
        yield []

    def _jobs(self, files: Iterable[AudioFile]) -> Iterator[_Job]:
        for audio in files:
            owner = _Pending(audio)
            self._pending.append(owner)
            try:
                recording = self._open(audio)
                owner.seconds = recording.seconds
                known = owner.open(self._remember(audio, recording))
                for piece in recording.pieces():
                    if owner.failed:
                        break
                    job = _Job(owner, piece.start, piece.samples)
                    owner.waiting += 1
                    if job.place in known:
                        self._add(job, known[job.place])
                    else:
                        yield job
            except UserError as error:
                self._give_up(owner, error)
            owner.complete = True

    def _begin(self, batch: Sequence[_Job]) -> Callable[[], list[Recognised]]:
        return self._submit([job.samples for job in batch])

    def _finish(self, batch: Sequence[_Job], results: Callable[[], list[Recognised]]) -> None:
        """Takes in a batch; a piece that cannot be recognised does not take the others with it."""
        if all(job.owner.failed for job in batch):
            return
        try:
            recognised = results()
        except UserError as error:
            if len(batch) > 1:
                for job in batch:
                    self._finish([job], self._begin([job]))
                return
            place = f"at {batch[0].start:.2f} s: " if batch[0].start else ""
            return self._give_up(batch[0].owner, UserError(f"{batch[0].owner.audio.path}: {place}{error}"))
        for job, result in zip(batch, recognised, strict=True):
            if not job.owner.failed:
                job.owner.journal.add({f"{job.place} {result[1]}": result[0]}, 0.0)
                self._add(job, result)

    def _add(self, job: _Job, result: Recognised) -> None:
        seconds = len(job.samples) / self._rate
        job.owner.waiting -= 1
        job.owner.parts.append(Part(job.start, seconds, *result))
        self._advance(seconds)

    def _give_up(self, owner: _Pending, error: UserError) -> None:
        owner.failed = True
        owner.opened.__exit__(type(error), error, error.__traceback__)
        self._fail(owner.audio, error)

    def _finished(self) -> Iterator[Transcript]:
        while self._pending and (self._pending[0].failed or (self._pending[0].complete and not self._pending[0].waiting)):
            owner = self._pending.popleft()
            if not owner.failed:
                with owner.opened:  # what becomes of the transcript ends the journal
                    yield Transcript(owner.audio, owner.seconds, tuple(sorted(owner.parts, key=lambda part: part.start)))
