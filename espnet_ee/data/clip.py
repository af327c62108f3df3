"""A stretch of a recording. Times are decimal, as transcripts and Kaldi's ``segments`` give them, and are rounded to
samples once, never truncated: 17.82 s is no binary fraction, and truncating it would be off by a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from pathlib import Path

from espnet_ee.errors import UserError

OVERSHOOT_SECONDS = Decimal("0.5")
"""A segment may end so much after its recording does (Kaldi's tolerance); it is then cut at the recording's end."""

MAX_SECONDS = Decimal(10**9)
"""Thirty years: numbers far beyond cannot be counted in samples."""


@dataclass(frozen=True)
class Span:
    """From ``start`` to ``end`` in seconds, 0 <= start < end."""

    start: Decimal
    end: Decimal

    def samples(self, rate: int, available: int, where: str) -> tuple[int, int]:
        """First sample and sample after the last, of a recording of so many samples; an error names ``where``.

        Raises:
            UserError: the span begins after the recording's end, or ends more than OVERSHOOT_SECONDS after it.
        """
        first, last = to_samples(self.start, rate), to_samples(self.end, rate)
        if first >= available or last > available + to_samples(OVERSHOOT_SECONDS, rate):
            raise UserError(
                f"{where}: {self.start} to {self.end} s lies beyond the end of the recording "
                f"({available / rate:.3f} s); get the recording again or correct the times"
            )
        if last <= first:
            raise UserError(f"{where}: {self.start} to {self.end} s holds no sample; correct the times")
        return first, min(last, available)


@dataclass(frozen=True)
class Clip:
    """Where the sound of an utterance is: a file, or a span of it."""

    path: str
    span: Span | None = None


def to_samples(seconds: Decimal, rate: int) -> int:
    """Rounds to the nearest sample, half up.

    >>> to_samples(Decimal("17.82"), 100)
    1782
    """
    return int((seconds * rate).to_integral_value(ROUND_HALF_UP))


def parse_seconds(text: str, where: str) -> Decimal:
    """Reads a time of 0 s or more, in reason. Raises UserError for anything else."""
    try:
        seconds = Decimal(text)
    except InvalidOperation:
        seconds = Decimal("NaN")
    if not seconds.is_finite():
        raise UserError(f"{where}: {text!r} is not a time in seconds; correct it")
    if seconds < 0:
        raise UserError(f"{where}: the time {text} is negative; correct it")
    if seconds > MAX_SECONDS:
        raise UserError(f"{where}: the time {text} is longer than any recording; correct it")
    return seconds


def parse_span(start: str, end: str, where: str) -> Span:
    """Reads two times. Raises UserError if they are no times or not in order."""
    span = Span(parse_seconds(start, where), parse_seconds(end, where))
    if span.start >= span.end:
        raise UserError(f"{where}: the times {start} and {end} are reversed; correct them")
    return span


def parse_segment(value: str, where: str) -> tuple[str, Span]:
    """Reads ``RECORDING START END`` of Kaldi's ``segments``. Raises UserError if it is something else."""
    words = value.split()
    if len(words) != 3:
        raise UserError(f"{where}: not 'RECORDING START END' after the id: {value!r}; mend the line")
    return words[0], parse_span(words[1], words[2], where)


def clips_of(wavs: Mapping[str, str], segments: Mapping[str, str] | None, folder: str | Path) -> dict[str, Clip]:
    """Where the sound of every utterance is: a file of ``wav.scp``, or with ``segments`` a stretch of one; errors name the folder.

    Raises:
        UserError: a line of ``segments`` is malformed, or names a recording that ``wav.scp`` has not.
    """
    if segments is None:
        return {utt_id: Clip(path) for utt_id, path in wavs.items()}
    clips = {}
    for number, (utt_id, line) in enumerate(segments.items(), 1):
        where = f"{Path(folder) / 'segments'}:{number}"
        recording, span = parse_segment(line, where)
        if recording not in wavs:
            raise UserError(f"{where}: {utt_id}: {recording!r} is not in {Path(folder) / 'wav.scp'}; add or delete it")
        clips[utt_id] = Clip(wavs[recording], span)
    return clips
