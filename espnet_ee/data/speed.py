"""Speed perturbation: the same utterances spoken faster and slower (and so higher and lower), as Kaldi's sp0.9."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

from espnet_ee.data.clip import Clip
from espnet_ee.data.datadir import DataDir, Table
from espnet_ee.data.derived import derived_dir
from espnet_ee.data.format_audio import Conversion, convert
from espnet_ee.data.parallel import ordered_map
from espnet_ee.data.skips import Prepared, Skip
from espnet_ee.errors import UsageError, UserError
from espnet_ee.files import atomic_dir, refuse_other_folder, refuse_overlap

MARK = ".speed_perturbed"
"""A file in every folder of perturbed audio: only such a folder is ever replaced."""


def check_factors(words: Sequence[str]) -> list[str]:
    """The words, as they shall stand in the ids. Raises UsageError for what is no number from 0.25 to 4, or given twice."""
    factors: list[str] = []
    for word in words:
        try:
            value = Fraction(word) if "/" not in word else Fraction(0)
        except ValueError:
            value = Fraction(0)
        if not Fraction(1, 4) <= value <= 4 or value.denominator > 1000:
            raise UsageError(f"--factors: {word!r} is not a factor from 0.25 to 4 with at most three decimals")
        if value in map(Fraction, factors):
            raise UsageError(f"--factors: {word} is given twice; give each factor once")
        factors.append(word)
    return factors


def perturb_speed(
    source: Path, out: Path, factors: Sequence[str], audio_dir: Path, nj: int = 1, max_skipped: float = 0
) -> Prepared:
    """Makes the data directory ``out`` with one copy of ``source`` for each factor.

    Factor f makes an utterance 1/f times as long: ceil(samples / f) samples at the same rate. Its id becomes
    ``sp{f}-ID`` and its speaker ``sp{f}-SPEAKER``; factor 1 keeps ids and, where an utterance has a file of its own, files.

    Args:
        source: a data directory with wav.scp.
        out, nj, max_skipped: see :func:`espnet_ee.data.derived.derived_dir`; a broken utterance is left out at every speed.
        factors: e.g. ``["0.9", "1.0", "1.1"]``, each written as it shall stand in the ids.
        audio_dir: the folder of FLAC files to make or replace.

    Raises:
        UserError: the directory is broken, or more of its files than may be skipped, or ``audio_dir`` holds something
            else, or two utterances would get one id.
    """
    refuse_overlap(out, audio_dir)
    refuse_other_folder(audio_dir, (MARK,))
    if own := [path for path in audio_dir.glob("*") if path.is_file() and path.name != MARK]:
        raise UserError(f"{own[0]}: was put into {audio_dir}, and would be lost; move it away or give another folder")
    with derived_dir(source, out, "raw", max_skipped, (audio_dir,)) as new:
        _check_ids(new.source, factors)
        # The audio must be in place before the directory that names it.
        with atomic_dir(audio_dir) as folder:
            jobs = [job for factor in factors for job in _jobs(new.source, factor, folder)]
            (folder / MARK).write_text(" ".join(factors) + "\n", encoding="utf-8")
            results = ordered_map(convert, jobs, nj, f"speeds of {out.name}")
            broken = {skip.utt_id: skip for skip in results if isinstance(skip, Skip)}
            skips = new.settle(broken.values())
        new.draft.tables.update(_tables(new.source, factors, audio_dir, broken.keys()))
        return Prepared(len(new.draft.tables["wav.scp"]), skips)


def _prefix(factor: str) -> str:
    return "" if Fraction(factor) == 1 else f"sp{factor}-"


def _check_ids(data: DataDir, factors: Sequence[str]) -> None:
    taken: set[str] = set()
    for factor in factors:
        for utt_id in data.utt_ids:
            name = _prefix(factor) + utt_id
            if name in taken:
                where = data.where(data.source, utt_id)
                raise UserError(f"{where}: {utt_id!r} at speed {factor} would be {name!r}, as another is; rename one")
            taken.add(name)


def _audio_name(data: DataDir, utt_id: str, clip: Clip, factor: str) -> str | None:
    """The file of an utterance at one speed, below the folder of audio; None if its own file is that."""
    prefix = _prefix(factor)
    is_new = prefix or clip.span is not None
    return f"{prefix}{data.tables['utt2spk'][utt_id]}/{prefix}{utt_id}.flac" if is_new else None


def _jobs(data: DataDir, factor: str, folder: Path) -> Iterator[Conversion]:
    for utt_id, clip in data.clips().items():
        name = _audio_name(data, utt_id, clip, factor)
        if name:
            yield Conversion(utt_id, clip, folder / name, speed=Fraction(factor))


def _tables(data: DataDir, factors: Sequence[str], audio_dir: Path, left_out: Collection[str]) -> dict[str, Table]:
    tables: dict[str, Table] = {"wav.scp": {}, "text": {}, "utt2spk": {}}
    for factor in factors:
        prefix = _prefix(factor)
        for utt_id, clip in data.clips().items():
            if utt_id in left_out:
                continue
            name = _audio_name(data, utt_id, clip, factor)
            tables["wav.scp"][prefix + utt_id] = str(audio_dir / name) if name else clip.path
            tables["text"][prefix + utt_id] = data.tables["text"][utt_id]
            tables["utt2spk"][prefix + utt_id] = prefix + data.tables["utt2spk"][utt_id]
    return tables
