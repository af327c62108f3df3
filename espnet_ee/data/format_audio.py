"""Utterances written anew as 16-bit FLAC: those of a data directory at one sampling rate, and any at another rate or speed."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from espnet_ee.data.audio import read_int16, stretch, write_flac
from espnet_ee.data.clip import Clip
from espnet_ee.data.derived import derived_dir
from espnet_ee.data.parallel import ordered_map
from espnet_ee.data.skips import Prepared, Skip
from espnet_ee.errors import UsageError, UserError


@dataclass(frozen=True)
class Conversion:
    """A file of one utterance that is to be written: at what sampling rate (in Hz; None: the recording's), how much faster."""

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


def format_audio(source: Path, out: Path, rate: int, nj: int = 1, max_skipped: float = 0) -> Prepared:
    """Makes the data directory ``out`` with its audio in ``out/data``, one file an utterance.

    16-bit audio that has ``rate`` Hz already keeps its samples bit by bit. Segments are cut out of their recordings.

    Args:
        source: a data directory with wav.scp, with or without segments.
        out, nj, max_skipped: see :func:`espnet_ee.data.derived.derived_dir`.
        rate: sampling rate in Hz.

    Raises:
        UserError: the directory is broken, or more of its files than may be skipped.
    """
    if rate < 1:
        raise UsageError(f"--fs {rate}: not a sampling rate; give one in Hz, e.g. 16000")
    with derived_dir(source, out, "raw", max_skipped) as new:
        speakers = new.source.tables["utt2spk"]
        clips = new.source.clips()
        names = {utt_id: f"data/{speakers[utt_id]}/{utt_id}.flac" for utt_id in clips}
        jobs = [Conversion(utt_id, clip, new.draft.folder / names[utt_id], rate) for utt_id, clip in clips.items()]
        results = ordered_map(convert, jobs, nj, f"format {out.name}")
        skips = new.settle(result for result in results if isinstance(result, Skip))
        counts = {utt_id: str(n) for utt_id, n in zip(clips, results, strict=True) if not isinstance(n, Skip)}
        new.draft.tables["wav.scp"] = {utt_id: str(out / names[utt_id]) for utt_id in counts}
        new.draft.tables["utt2num_samples"] = counts
        new.draft.notes["feats_type"] = "raw\n"
        return new.carry(counts, skips)
