"""What only shows when sets are laid side by side: sound that training has heard, characters that it never saw."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from espnet_ee.data.clip import Clip
from espnet_ee.data.datadir import DataDir, read_data_dir
from espnet_ee.errors import UsageError
from espnet_ee.files import file_digest, is_file

_SHOWN = 10
_ENDS = (0, 10**12)  # of a clip that is a whole file, in seconds


def compare_sets(train: str | Path, others: Sequence[str | Path]) -> list[str]:
    """Compares sets that are developed on or scored with the training set; sound is compared byte by byte, file by file.

    Gives warnings, one line each.

    Raises:
        UsageError: a directory is named twice.
        UserError: one is broken.
    """
    paths = [Path(path) for path in others]
    twice = next((path for number, path in enumerate(paths) if path.resolve() in [p.resolve() for p in paths[:number]]), None)
    if twice is not None:
        raise UsageError(f"--data {twice}: is named twice; name each set once")
    known = _Set(read_data_dir(train))
    lines = [*_doubled_blanks(known)]
    for path in paths:
        other = _Set(read_data_dir(path))
        lines += [*_doubled_blanks(other), *_unknown_characters(known, other), *_heard(known, other)]
    return lines


@dataclass(frozen=True)
class _Set:
    """A data directory as it is compared."""

    data: DataDir

    @property
    def name(self) -> str:
        return self.data.path.resolve().name

    @property
    def texts(self) -> Mapping[str, str]:
        return self.data.tables["text"]

    @cached_property
    def clips(self) -> dict[str, Clip]:
        return self.data.clips() if "wav.scp" in self.data.tables else {}

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Bytes of every sound file that is there."""
        return {path: Path(path).stat().st_size for path in {clip.path for clip in self.clips.values()} if is_file(path)}

    def stretches(self, sizes: set[int]) -> dict[str, list[tuple[str, float, float]]]:
        """Content of a file -> utterance, begin and end, for the files of one of these sizes: others need not be read."""
        digests = {path: file_digest(path) for path, size in self.sizes.items() if size in sizes}
        found = defaultdict(list)
        for utt_id, clip in self.clips.items():
            if clip.path in digests:
                begin, end = _ENDS if clip.span is None else (float(clip.span.start), float(clip.span.end))
                found[digests[clip.path]].append((utt_id, begin, end))
        return found


def _doubled_blanks(one: _Set) -> Iterator[str]:
    utts = [utt for utt, text in one.texts.items() if "  " in text]
    if utts:
        yield (
            f"warning: {one.name}: {len(utts)} of {len(one.texts)} texts hold several blanks in a row (the first: {utts[0]}); "
            "characters are trained as they stand, scores take them for one: tr -s ' ' mends the file"
        )


def _unknown_characters(train: _Set, other: _Set) -> Iterator[str]:
    missing = set("".join(other.texts.values())) - set("".join(train.texts.values())) - {" "}
    if missing:
        count = sum(not missing.isdisjoint(text) for text in other.texts.values())
        signs = " ".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in sorted(missing)[:_SHOWN])
        more = " ..." if len(missing) > _SHOWN else ""
        yield (
            f"warning: {other.name}: {len(missing)} characters of its texts ({signs}{more}; in {count} of {len(other.texts)}) are "
            f"in none of {train.name}, so no model of it can write them; put both into one writing"
        )


def _heard(train: _Set, other: _Set) -> Iterator[str]:
    """What of a set training has, by id, by sound, or by another stretch of one recording."""
    ids = [utt for utt in other.data.utt_ids if utt in train.data.tables[train.data.source]]
    sizes = set(train.sizes.values()) & set(other.sizes.values())
    theirs, ours = other.stretches(sizes), train.stretches(sizes)
    sounds: list[str] = []
    recordings: list[str] = []
    for content in theirs.keys() & ours.keys():
        for utt, begin, end in theirs[content]:
            overlaps = any(begin < their_end and their_begin < end for _, their_begin, their_end in ours[content])
            (sounds if overlaps else recordings).append(utt)
    both = sorted({*ids, *sounds})
    if both:
        how = " and ".join(f"{len(part)} by {name}" for part, name in ((ids, "id"), (sounds, "sound")) if part)
        yield (
            f"warning: {other.name}: {len(both)} of its {len(other.texts)} utterances ARE IN {train.name}, TOO ({how}; the first: "
            f"{both[0]}): what is measured on it says nothing of new speech; take them out of one of the two"
        )
    if recordings:
        yield (
            f"warning: {other.name}: {len(recordings)} of its {len(other.texts)} utterances are other stretches of recordings that "
            f"{train.name} has, too (the first: {min(recordings)}): the speaker is known to the model"
        )
