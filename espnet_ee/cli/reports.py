"""What commands tell: texts, and on stderr, while files are worked through, mistakes, notes, and how far a long run is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from espnet_ee.errors import UserError
from espnet_ee.files import atomic_write

_SOON, _LATER, _EVERY = 2.0, 30.0, 30.0  # seconds: on a terminal a run is long from the first on, in a log from the second


def write_text(path: Path | None, text: str) -> None:
    """Into a file, whole or not at all, or to stdout."""
    if path is None:
        print(text, end="")
        return
    with atomic_write(path) as stream:
        stream.write(text)


class Progress:
    """How much audio is done of how much, and how long the rest takes: on a terminal a line that changes, else one in a while.

    Args:
        total: tells the seconds of audio that there are; asked when a run turns out to be long.
        clock: seconds.

    >>> clock = iter([0.0, 60.0])
    >>> progress = Progress(lambda: 3600.0, clock=lambda: next(clock))
    >>> progress.state(600.0, 60.0)
    '0:10:00 of 1:00:00 done, 10 times as fast as it was said; 0:05:00 left'
    """

    def __init__(self, total: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask, self._clock = total, clock
        self._total: float | None = None
        self._terminal, self._drawn = sys.stderr.isatty(), False
        self._started, self._done, self._next = clock(), 0.0, _SOON if self._terminal else _LATER

    def advance(self, seconds: float) -> None:
        """So much more audio is done."""
        self._done += seconds
        elapsed = self._clock() - self._started
        if elapsed >= self._next:
            line = f"espnet-ee: {self.state(self._done, elapsed)}"
            self._next = elapsed + (0.5 if self._terminal else _EVERY)
            start, end = ("\r\x1b[K", "") if self._terminal else ("", "\n")
            print(f"{start}{line}", end=end, file=sys.stderr, flush=True)
            self._drawn = self._terminal

    def state(self, done: float, elapsed: float) -> str:
        """In words, when so many seconds of audio are done after so many seconds."""
        if self._total is None:
            self._total = self._ask()
        total, speed = max(self._total, done), done / elapsed
        left = (total - done) / speed
        return f"{_hours(done)} of {_hours(total)} done, {speed:.3g} times as fast as it was said; {_hours(left)} left"

    def clear(self) -> None:
        """Gives the terminal's line free for another."""
        if self._drawn:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._drawn = False


class Problems:
    """What went wrong with files, one line each on stderr; and what was done to them, once per kind."""

    def __init__(self) -> None:
        self.count = 0
        self.progress: Progress | None = None
        self._said: set[str] = set()

    def fail(self, error: UserError) -> None:
        """Names a file that is left out."""
        self.count += 1
        self._print(f"error: {error}")

    def note(self, path: str, note: str) -> None:
        """Says what is done to a file, if it was not said of another."""
        if note and note not in self._said:
            self._said.add(note)
            self._print(f"note: {path}: {note} (said once)")

    def say(self, note: str) -> None:
        """Says something else."""
        self._print(f"note: {note}")

    def _print(self, line: str) -> None:
        if self.progress:
            self.progress.clear()
        print(f"espnet-ee: {' '.join(line.split())}", file=sys.stderr, flush=True)


def _hours(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
