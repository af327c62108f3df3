"""Drops the utterances that a training would choke on: too short, too long, or without a transcript."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from espnet_ee.data.audio import clip_samples
from espnet_ee.data.datadir import DataDir
from espnet_ee.data.derived import derived_dir
from espnet_ee.data.features import frame_shift
from espnet_ee.errors import UsageError, UserError


@dataclass(frozen=True)
class Survivors:
    """Which utterances stay, and why the others go (reason -> utterances)."""

    kept: list[str]
    dropped: dict[str, list[str]]

    def __str__(self) -> str:
        total = len(self.kept) + sum(map(len, self.dropped.values()))
        reasons = ", ".join(f"{len(utt_ids)} {reason}" for reason, utt_ids in self.dropped.items())
        return f"{len(self.kept)} of {total} utterances kept ({reasons})"


def filter_lengths(source: Path, out: Path, min_seconds: float, max_seconds: float, rate: int = 16000) -> Survivors:
    """Copies a data directory without the utterances outside [min_seconds, max_seconds] or with an empty transcript.

    The audio or feature files stay where they are. Only training data is to be filtered, never a set to be scored.

    Args:
        source: a data directory (raw or extracted).
        out: the directory to make or replace.
        min_seconds, max_seconds: shortest and longest duration kept.
        rate: sampling rate in Hz that utt2num_samples counts in.

    Raises:
        UserError: the directory is broken, or nothing would be left.
    """
    if not 0 <= min_seconds < max_seconds or rate < 1:
        raise UsageError(
            f"--min_seconds {min_seconds} --max_seconds {max_seconds} --fs {rate}: not a range of durations; "
            "give 0 <= min < max and a rate in Hz"
        )
    with derived_dir(source, out) as new:
        data, tables = new.source, new.draft.tables
        survivors = choose_survivors(data, durations(data, rate), min_seconds, max_seconds)
        if not survivors.kept:
            without = len(survivors.dropped["without text"]) == len(data.utt_ids)
            remedy = "add the transcripts" if without else "widen --min_seconds and --max_seconds or check --fs"
            raise UserError(f"{source}: {survivors}; {remedy}")
        for name, table in data.tables.items():
            if name != "wav.scp" or "segments" not in data.tables:
                tables[name] = {utt_id: table[utt_id] for utt_id in survivors.kept}
        if "segments" in tables and "wav.scp" in data.tables:
            recordings = {line.split()[0] for line in tables["segments"].values()}
            tables["wav.scp"] = {name: data.tables["wav.scp"][name] for name in recordings}
        new.draft.notes.update(data.notes)
    return survivors


def choose_survivors(data: DataDir, seconds: dict[str, float], min_seconds: float, max_seconds: float) -> Survivors:
    """Sorts the utterances of ``data`` by what happens to them."""
    survivors = Survivors([], {"too short": [], "too long": [], "without text": []})
    for utt_id in data.utt_ids:
        if not data.tables["text"][utt_id]:
            survivors.dropped["without text"].append(utt_id)
        elif seconds[utt_id] < min_seconds:
            survivors.dropped["too short"].append(utt_id)
        elif seconds[utt_id] > max_seconds:
            survivors.dropped["too long"].append(utt_id)
        else:
            survivors.kept.append(utt_id)
    return survivors


def durations(data: DataDir, rate: int) -> dict[str, float]:
    """Seconds of every utterance: from the counts beside it, else from the audio files' headers."""
    tables = data.tables
    if "utt2num_samples" in tables:
        return {utt_id: int(count) / rate for utt_id, count in tables["utt2num_samples"].items()}
    if "utt2num_frames" in tables:
        hop = frame_shift(data.path)
        return {utt_id: int(count) * hop for utt_id, count in tables["utt2num_frames"].items()}
    if "wav.scp" not in tables:
        raise UserError(f"{data.path}: has neither utt2num_frames nor wav.scp; extract the features again")
    headers = {utt_id: clip_samples(clip) for utt_id, clip in data.clips().items()}
    return {utt_id: count / header_rate for utt_id, (count, header_rate) in headers.items()}
