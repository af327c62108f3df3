"""Writes every utterance of a data directory as 16-bit FLAC at one sampling rate."""

from __future__ import annotations

from pathlib import Path

from espnet_ee.data.conversion import Conversion, convert
from espnet_ee.data.derived import derived_dir
from espnet_ee.data.parallel import ordered_map
from espnet_ee.data.skips import Prepared, Skip
from espnet_ee.errors import UsageError


def format_audio(source: Path, out: Path, rate: int, nj: int = 1, max_skipped: float = 0) -> Prepared:
    """Makes the data directory ``out`` with its audio in ``out/data``, one file an utterance.

    16-bit audio that has ``rate`` Hz already keeps its samples bit by bit. Segments are cut out of their recordings.

    Args:
        source: a data directory with wav.scp, with or without segments.
        out: the directory to make or replace.
        rate: sampling rate in Hz.
        nj: number of processes; does not change the result.
        max_skipped: percentage of the utterances that may be left out because their audio is broken.

    Returns:
        How many utterances it has, and which were skipped.

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
