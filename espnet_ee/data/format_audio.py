"""Writes every utterance of a data directory as 16-bit FLAC at one sampling rate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from espnet_ee.data.audio import read_int16, resample, write_flac
from espnet_ee.data.datadir import new_data_dir, read_data_dir, refuse_overlap
from espnet_ee.data.parallel import ordered_map
from espnet_ee.errors import UsageError


@dataclass(frozen=True)
class _Job:
    source: str
    target: Path
    rate: int


def format_audio(source: Path, out: Path, rate: int, nj: int = 1) -> int:
    """Makes the data directory ``out`` with its audio in ``out/data``; returns the number of utterances.

    16-bit audio that has ``rate`` Hz already keeps its samples bit by bit.

    Args:
        source: a data directory with wav.scp.
        out: the directory to make or replace.
        rate: sampling rate in Hz.
        nj: number of processes; does not change the result.

    Raises:
        UserError: the directory or a file of it is broken.
    """
    if rate < 1:
        raise UsageError(f"--fs {rate}: not a sampling rate; give one in Hz, e.g. 16000")
    refuse_overlap(source, out)
    data = read_data_dir(source, "raw")
    speakers = data.tables["utt2spk"]
    names = {utt_id: f"data/{speakers[utt_id]}/{utt_id}.flac" for utt_id in data.utt_ids}
    with new_data_dir(out) as draft:
        jobs = [_Job(data.tables["wav.scp"][utt_id], draft.folder / name, rate) for utt_id, name in names.items()]
        counts = ordered_map(_format_one, jobs, nj, f"format_audio {out.name}")
        draft.tables.update({name: data.tables[name] for name in ("text", "utt2spk")})
        draft.tables["wav.scp"] = {utt_id: str(out / name) for utt_id, name in names.items()}
        draft.tables["utt2num_samples"] = dict(zip(names, map(str, counts), strict=True))
        draft.notes["feats_type"] = "raw\n"
    return len(names)


def _format_one(job: _Job) -> int:
    samples, rate = read_int16(job.source)
    samples = resample(samples, rate, job.rate)
    write_flac(job.target, samples, job.rate)
    return len(samples)
