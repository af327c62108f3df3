"""Speed perturbation: the same utterances spoken faster and slower (and so higher and lower), as Kaldi's sp0.9."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from espnet_ee.data.audio import read_int16, stretch, write_flac
from espnet_ee.data.clip import Clip
from espnet_ee.data.datadir import DataDir, Table, new_data_dir, read_data_dir, refuse_other_folder, refuse_overlap
from espnet_ee.data.parallel import ordered_map
from espnet_ee.errors import UsageError
from espnet_ee.files import atomic_dir

MARK = ".speed_perturbed"
"""A file in every folder of perturbed audio: only such a folder is ever replaced."""


@dataclass(frozen=True)
class _Job:
    source: Clip
    target: Path
    factor: Fraction


def parse_factors(text: str) -> list[str]:
    """Splits ``"0.9 1.0 1.1"``. Raises UsageError for what is not a number from 0.25 to 4, or given twice."""
    factors: list[str] = []
    for word in text.split():
        try:
            value = Fraction(word) if "/" not in word else Fraction(0)
        except ValueError:
            value = Fraction(0)
        if not Fraction(1, 4) <= value <= 4 or value.denominator > 1000:
            raise UsageError(f"--factors: {word!r} is not a factor from 0.25 to 4 with at most three decimals")
        if value in map(Fraction, factors):
            raise UsageError(f"--factors: {word} is given twice; give each factor once")
        factors.append(word)
    if not factors:
        raise UsageError("--factors: is empty; give e.g. '0.9 1.0 1.1'")
    return factors


def perturb_speed(source: Path, out: Path, factors: Sequence[str], audio_dir: Path, nj: int = 1) -> int:
    """Makes the data directory ``out`` with one copy of ``source`` for each factor; returns the number of utterances.

    Factor f makes an utterance 1/f times as long: ceil(samples / f) samples at the same rate. Its id becomes
    ``sp{f}-ID`` and its speaker ``sp{f}-SPEAKER``; factor 1 keeps ids and, where an utterance has a file of its own, files.

    Args:
        source: a data directory with wav.scp.
        out: the directory to make or replace.
        factors: e.g. ``["0.9", "1.0", "1.1"]``, each written as it shall stand in the ids.
        audio_dir: the folder of FLAC files to make or replace.
        nj: number of processes; does not change the result.

    Raises:
        UserError: the directory or a file of it is broken, or ``audio_dir`` holds something else.
    """
    refuse_overlap(source, out)
    refuse_overlap(source, audio_dir)
    refuse_overlap(out, audio_dir)
    refuse_other_folder(audio_dir, (MARK,))
    data = read_data_dir(source, "raw")
    # The audio must be in place before the directory that names it.
    with new_data_dir(out) as draft:
        tables: dict[str, Table] = {"wav.scp": {}, "text": {}, "utt2spk": {}}
        with atomic_dir(audio_dir) as folder:
            jobs = [job for factor in factors for job in _add_copy(tables, data, factor, audio_dir, folder)]
            (folder / MARK).write_text(" ".join(factors) + "\n", encoding="utf-8")
            ordered_map(_perturb_one, jobs, nj, f"perturb_speed {out.name}")
        draft.tables.update(tables)
    return len(tables["wav.scp"])


def _add_copy(
    tables: dict[str, Table], data: DataDir, factor: str, audio_dir: Path, folder: Path
) -> list[_Job]:
    """Enters the utterances at one speed into the tables; returns the audio to be made."""
    prefix = "" if Fraction(factor) == 1 else f"sp{factor}-"
    jobs: list[_Job] = []
    for utt_id, clip in data.clips().items():
        speaker = prefix + data.tables["utt2spk"][utt_id]
        name = f"{speaker}/{prefix}{utt_id}.flac"
        made = bool(prefix) or clip.span is not None
        if made:
            jobs.append(_Job(clip, folder / name, Fraction(factor)))
        tables["wav.scp"][prefix + utt_id] = str(audio_dir / name) if made else clip.path
        tables["text"][prefix + utt_id] = data.tables["text"][utt_id]
        tables["utt2spk"][prefix + utt_id] = speaker
    return jobs


def _perturb_one(job: _Job) -> None:
    samples, rate = read_int16(job.source.path, job.source.span)
    write_flac(job.target, stretch(samples, 1 / job.factor), rate)
