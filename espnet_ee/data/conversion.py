"""One utterance written anew as 16-bit FLAC: at another sampling rate, or another speed."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from espnet_ee.data.audio import read_int16, stretch, write_flac
from espnet_ee.data.clip import Clip
from espnet_ee.data.skips import Skip
from espnet_ee.errors import UserError


@dataclass(frozen=True)
class Conversion:
    """What is to be written.

    Attributes:
        utt_id: of the utterance.
        source: where its sound is.
        target: the file to write.
        rate: its sampling rate in Hz; None: the recording's.
        speed: how much faster it is to be.
    """

    utt_id: str
    source: Clip
    target: Path
    rate: int | None = None
    speed: Fraction = Fraction(1)


def convert(job: Conversion) -> int | Skip:
    """Writes the file; returns its number of samples, or why there is none."""
    try:
        samples, rate = read_int16(job.source.path, job.source.span)
    except UserError as error:
        return Skip(job.utt_id, str(error))
    new_rate = job.rate or rate
    if rate < new_rate:
        why = f"has {rate} Hz, which cannot become {new_rate} Hz; get the original or run with --fs {rate}"
        return Skip(job.utt_id, f"{job.source.path}: {why}")
    samples = stretch(samples, Fraction(new_rate, rate) / job.speed)
    write_flac(job.target, samples, new_rate)
    return len(samples)
