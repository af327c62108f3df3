"""Drops the utterances that a training would choke on: too short, too long, or without a transcript."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from espnet_ee.data.audio import clip_samples
from espnet_ee.data.datadir import DataDir, new_data_dir, read_data_dir, refuse_to_replace_files
from espnet_ee.data.features import frame_shift
from espnet_ee.errors import UsageError, UserError
from espnet_ee.files import refuse_overlap


@dataclass(frozen=True)
class Survivors:
    """Which utterances stayed, and why the others went."""

    kept: tuple[str, ...]
    too_short: tuple[str, ...]
    too_long: tuple[str, ...]
    no_text: tuple[str, ...]

    def __str__(self) -> str:
        dropped = {"too short": self.too_short, "too long": self.too_long, "without text": self.no_text}
        total = len(self.kept) + sum(map(len, dropped.values()))
        reasons = ", ".join(f"{len(utt_ids)} {reason}" for reason, utt_ids in dropped.items())
        return f"{len(self.kept)} of {total} utterances kept ({reasons})"


def filter_lengths(source: Path, out: Path, min_seconds: float, max_seconds: float, rate: int = 16000) -> Survivors:
    """Copies a data directory without the utterances outside [min_seconds, max_seconds] or with an empty transcript.

    The audio or feature files stay where they are. Only training data is to be filtered, never a set to be scored.

    Args:
        source: a data directory (raw or extracted).
        out: the directory to make or replace.
        min_seconds: shortest duration kept.
        max_seconds: longest duration kept.
        rate: sampling rate in Hz that utt2num_samples counts in.

    Raises:
        UserError: the directory is broken, or nothing would be left.
    """
    if not 0 <= min_seconds < max_seconds or rate < 1:
        raise UsageError(
            f"--min_seconds {min_seconds} --max_seconds {max_seconds} --fs {rate}: not a range of durations; "
            "give 0 <= min < max and a rate in Hz"
        )
    refuse_overlap(source, out)
    data = read_data_dir(source)
    refuse_to_replace_files(data, out)
    survivors = choose_survivors(data, durations(data, rate), min_seconds, max_seconds)
    if not survivors.kept:
        raise UserError(f"{source}: {survivors}; widen --min_seconds and --max_seconds or check --fs")
    with new_data_dir(out) as draft:
        for name, table in data.tables.items():
            if name != "wav.scp" or data.source != "segments":
                draft.tables[name] = {utt_id: table[utt_id] for utt_id in survivors.kept}
        if data.source == "segments":
            recordings = {line.split()[0] for line in draft.tables["segments"].values()}
            draft.tables["wav.scp"] = {name: data.tables["wav.scp"][name] for name in recordings}
        draft.notes.update(data.notes)
    return survivors


def choose_survivors(data: DataDir, seconds: dict[str, float], min_seconds: float, max_seconds: float) -> Survivors:
    """Sorts the utterances of ``data`` by what happens to them."""
    kept: list[str] = []
    too_short: list[str] = []
    too_long: list[str] = []
    no_text: list[str] = []
    for utt_id in data.utt_ids:
        if not data.tables["text"][utt_id]:
            no_text.append(utt_id)
        elif seconds[utt_id] < min_seconds:
            too_short.append(utt_id)
        elif seconds[utt_id] > max_seconds:
            too_long.append(utt_id)
        else:
            kept.append(utt_id)
    return Survivors(tuple(kept), tuple(too_short), tuple(too_long), tuple(no_text))


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
