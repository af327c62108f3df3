"""Recordings of any length: cut in their pauses, and read piece by piece in the memory of one piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from numbers import Real
from pathlib import Path

import numpy as np

from espnet_ee.data.audio import (
    cancel_out,
    check_rates,
    count_samples,
    loudest,
    one_channel,
    read_any,
    read_blocks,
    resample_floats,
    treatment,
)
from espnet_ee.data.polyphase import reach
from espnet_ee.data.vad import RATE, pauses_in
from espnet_ee.errors import UserError

LEAST_SECONDS = 1.0
CUTS = ("energy", "vad")
"""What tells pauses."""
_VAD_SECONDS = 30  # read at once
_STEPS = 100  # a second is looked at in so many steps
_QUIET_STEPS = 50  # a pause is judged by so many: half a second, in which no consonant's closure fits
_BLOCK_STEPS = 1000
# A pause is quiet for what is around it: less than this share of the way, in dB, from the quietest to the loudest twentieth; where
# these lie close together nothing is told, and what is further below the loudest is silence.
_PAUSE_SHARE, _LEAST_RANGE, _MOST_RANGE, _AROUND_STEPS = 0.25, 10.0, 50.0, 1500


@dataclass(frozen=True)
class Piece:
    """A piece of a recording: where it starts, in seconds, and (T,) float32 in [-1, 1] at the rate that was asked for."""

    start: float
    samples: np.ndarray


@dataclass(frozen=True)
class Recording:
    """A recording that is to be read in pieces.

    Attributes:
        path: the file.
        rate: sampling rate in Hz that its pieces shall have.
        file_rate: that of the file.
        note: what is done to it, such as "8000 Hz, resampled to 16000 Hz"; empty if nothing.
        cuts: where each piece begins, and the end, in the file's samples; each piece begins where the one before ends.
        first_channel: whether the first channel alone is taken, because the channels cancel each other out.
        whole: all samples, of a file that is short enough for one piece.
    """

    path: Path
    rate: int
    file_rate: int
    note: str
    cuts: tuple[int, ...]
    first_channel: bool = False
    whole: np.ndarray | None = None

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.cuts[-1] / self.file_rate

    def pieces(self) -> Iterator[Piece]:
        """Reads one piece after the other. All samples are those that the whole file, resampled at once, would have.

        Raises:
            UserError: the file changed, or its end cannot be read.
        """
        if self.whole is not None:
            yield Piece(0.0, self.whole)
            return
        ratio, stream = Fraction(self.rate, self.file_rate), _Stream(self)
        down, margin = ratio.denominator, 0 if ratio == 1 else reach(ratio)
        for start, end in pairwise(self.cuts):
            # The filter sees beyond both ends; from a multiple of `down` on, new samples lie where they always do.
            before = max(0, start - margin) // down * down
            samples = stream.read(before, end + margin)
            first, last = (-(-(place - before) * ratio.numerator // down) for place in (start, end))
            samples = resample_floats(samples, self.file_rate, self.rate)
            yield Piece(start / self.file_rate, samples[first:last].astype(np.float32))


def open_recording(path: str | Path, rate: int, longest: float, cut: str = CUTS[0]) -> Recording:
    """Looks a file through, and decides where it is cut: nowhere, if it is short enough.

    A piece ends in the first pause of half a second after its first second; where there is none, at the quietest half second in
    the second half of what it may last: models are trained on what is said in one breath, and normalise by what they hear at once.

    Args:
        path: whatever libsndfile reads, of any rate and channels.
        rate: sampling rate in Hz that the pieces shall have.
        longest: seconds that a piece lasts at most.
        cut: what tells pauses: ``energy`` (loudness), or ``vad`` (see :mod:`espnet_ee.data.vad`).

    Raises:
        UserError: the file is missing, unreadable, empty, cut short, or holds NaN or infinity.
    """
    if not (isinstance(longest, Real) and longest >= LEAST_SECONDS):
        raise UserError(f"pieces of at most {longest!r} seconds: give {LEAST_SECONDS:g} or more")
    path = Path(path)
    count, file_rate = count_samples(path)
    check_rates(file_rate, rate, f"{path}: ")
    if count <= longest * file_rate:
        whole, note = read_any(path, rate)
        return Recording(path, rate, file_rate, note, (0, count), whole=whole)
    step = max(1, file_rate // _STEPS)
    energies, of_mean, channels, most = _survey(path, step)
    cancelled = cancel_out(of_mean, float(energies.mean()))
    note = treatment(channels, cancelled, most, file_rate, rate)
    breaks = pauses(energies) if cut == CUTS[0] else _heard_pauses(path, file_rate, count, step, cancelled)
    cuts = [place * step for place in cut_places(energies, int(longest * file_rate / step), breaks)]
    return Recording(path, rate, file_rate, note, (0, *cuts, count), cancelled)


def _heard_pauses(path: Path, file_rate: int, count: int, step: int, first_channel: bool) -> list[int]:
    """The pauses that voice activity detection finds, in steps."""
    cuts = (*range(0, count, file_rate * _VAD_SECONDS), count)
    blocks = (piece.samples for piece in Recording(path, RATE, file_rate, "", cuts, first_channel).pieces())
    return [round(pause * file_rate / step) for pause in pauses_in(blocks, _QUIET_STEPS / _STEPS)]


def cut_places(energies: np.ndarray, longest: int, breaks: Sequence[int]) -> list[int]:
    """Where to cut, in steps: in pauses, and between those that are too far apart where it is quietest.

    Args:
        energies: mean square of each step (N,).
        longest: between any two cuts lie at most so many; at least 4.
        breaks: the pauses.
    """
    total, least = len(energies), min(_STEPS, longest // 4)
    places = [0]
    for pause in breaks:
        if places[-1] + least <= pause <= total - least:
            places.append(pause)
    cuts: list[int] = []
    for first, last in pairwise([*places, total]):
        cuts += [first, *(first + place for place in quiet_places(energies[first:last], longest))]
    return cuts[1:]


def pauses(energies: np.ndarray) -> list[int]:
    """The middles of all stretches in which every half second is quiet for what is around it, in steps, by the mean square of each
    step (N,)."""
    quiet = np.zeros(len(energies) + 1, bool)
    for first in range(0, len(quiet), _AROUND_STEPS):
        start = max(0, first - _AROUND_STEPS // 2)
        levels = 10 * np.log10(_half_seconds(energies[start : first + _AROUND_STEPS * 3 // 2]) + 1e-12)
        low, high = np.quantile(levels, (0.05, 0.95))
        if high - low >= _LEAST_RANGE:
            threshold = _PAUSE_SHARE * high + (1 - _PAUSE_SHARE) * max(low, high - _MOST_RANGE)
            quiet[first : first + _AROUND_STEPS] = levels[first - start : first - start + _AROUND_STEPS] < threshold
    edges = np.flatnonzero(np.diff(np.concatenate(([False], quiet, [False]))))
    return [int(middle) for middle in (edges[::2] + edges[1::2]) // 2]


def _half_seconds(energies: np.ndarray, steps: int = _QUIET_STEPS) -> np.ndarray:
    """The mean over half a second around the start of each step, and around the end (N + 1,)."""
    sums, places = np.concatenate(([0.0], np.cumsum(energies, dtype=np.float64))), np.arange(len(energies) + 1)
    low, high = np.maximum(places - steps // 2, 0), np.minimum(places + steps // 2, len(energies))
    return (sums[high] - sums[low]) / np.maximum(high - low, 1)


def quiet_places(energies: Sequence[float] | np.ndarray, longest: int) -> list[int]:
    """Where to cut, in steps of known mean square (N,): between any two cuts lie at most ``longest`` (4 or more), and no piece is
    shorter than a quarter of that."""
    total, places = len(energies), [0]
    means = _half_seconds(np.asarray(energies), 2 * max(1, min(_QUIET_STEPS, longest // 2) // 2))
    while total - places[-1] > longest:
        first = places[-1] + longest // 2
        last = min(places[-1] + longest, total - longest // 4)
        places.append(first + int(means[first : last + 1].argmin()))
    return places[1:]


def _survey(path: Path, step: int) -> tuple[np.ndarray, float, int, float]:
    """Mean square of each step over all channels, that of the channels' mean over the whole file, channels, largest sample."""
    energies, of_mean, count, channels, most = [], 0.0, 0, 1, 0.0
    for block in read_blocks(path, step * _BLOCK_STEPS):
        channels, most = block.shape[1], max(most, loudest(block))
        power = np.square(block, dtype=np.float64).mean(axis=1)
        starts = np.arange(0, len(block), step)
        energies.append(np.add.reduceat(power, starts) / np.diff(np.append(starts, len(block))))
        of_mean += float(np.square(block.mean(axis=1, dtype=np.float64)).sum())
        count += len(block)
    return np.concatenate(energies), of_mean / count, channels, most


class _Stream:
    """The samples of a recording, one channel, by their places; it only goes forward."""

    def __init__(self, recording: Recording) -> None:
        self._blocks = read_blocks(recording.path, max(1, recording.file_rate // _STEPS) * _BLOCK_STEPS)
        self._first_channel = recording.first_channel
        self._start, self._held = 0, np.zeros(0)

    def read(self, first: int, last: int) -> np.ndarray:
        """Samples from one place to before another, or to the end; what lies before them is let go."""
        parts, end = [self._held[first - self._start :]], self._start + len(self._held)
        while end < last and (block := next(self._blocks, None)) is not None:
            parts.append(one_channel(block, self._first_channel))
            end += len(block)
        self._start, self._held = first, np.concatenate(parts)
        return self._held[: last - first]
