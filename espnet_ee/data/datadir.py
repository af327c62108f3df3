"""Kaldi data directories: the one reader, and what it checks.

Line numbers: a table of a data directory has neither empty nor repeated lines (``read_scp`` refuses them), so the
n-th entry stands on line n.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from espnet_ee.data.audio import count_samples
from espnet_ee.data.clip import Clip, clips_of
from espnet_ee.data.word_times import WORD_TIMES, read_word_times
from espnet_ee.errors import UsageError, UserError
from espnet_ee.files import is_file
from espnet_ee.kaldi import is_count, read_scp, split_place
from espnet_ee.text import invisible_signs

TABLES = ("wav.scp", "segments", "feats.scp", "text", "utt2spk", "utt2num_samples", "utt2num_frames")
NOTES = ("feats_type", "feats_dim", "frontend.yaml", WORD_TIMES)
"""Small files that belong to the whole directory and are carried along."""

_BAD_ID = re.compile(r"^\.|[/\\]|[\x00-\x1f\x7f]")
_ODD_BLANK = re.compile(r"[^\S ]")
_SOURCE_OF = {"raw": "wav.scp", "extracted": "feats.scp"}

Table = dict[str, str]


@dataclass(frozen=True)
class DataDir:
    """The tables of a data directory (by file name) and its notes."""

    path: Path
    tables: Mapping[str, Table]
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def source(self) -> str:
        """The table that says where each utterance is: ``feats.scp`` or ``segments`` if there is one, else ``wav.scp``."""
        return next((name for name in ("feats.scp", "segments") if name in self.tables), "wav.scp")

    @property
    def utt_ids(self) -> list[str]:
        """The utterances, in file order."""
        return list(self.tables[self.source])

    def clips(self) -> dict[str, Clip]:
        """Where the sound of every utterance is: a file of ``wav.scp``, or with ``segments`` a stretch of one."""
        return clips_of(self.tables["wav.scp"], self.tables.get("segments"), self.path)

    def files(self) -> Iterator[tuple[str, str, str]]:
        """``file:line``, value and path of everything that ``wav.scp`` and ``feats.scp`` name."""
        for name in ("wav.scp", "feats.scp"):
            for number, value in enumerate(self.tables.get(name, {}).values(), 1):
                yield f"{self.path / name}:{number}", value, value.rpartition(":")[0] if name == "feats.scp" else value

    def where(self, table: str, utt_id: str) -> str:
        """``file:line`` of an utterance."""
        return f"{self.path / table}:{list(self.tables[table]).index(utt_id) + 1}"


def read_data_dir(path: str | Path, feats_type: str | None = None) -> DataDir:
    """Reads a data directory and checks everything but whether the audio is there.

    ``feats_type`` is ``raw`` (needs wav.scp) or ``extracted`` (needs feats.scp); by default what the directory says.

    Raises:
        UserError: a table is missing, broken, unsorted, or the tables do not list the same utterances.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such data directory; run the stage that makes it first")
    notes = {name: _read_note(path / name) for name in NOTES if (path / name).is_file()}
    tables = {name: read_scp(path / name, allow_empty=name == "text") for name in TABLES if (path / name).is_file()}
    data = DataDir(path, tables, notes)
    _check_complete(data, feats_type or notes.get("feats_type", "").strip() or None)
    _check_tables(data)
    return data


def _read_note(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; run the stage that makes it again") from None


def validate_data_dir(path: str | Path, feats_type: str | None = None) -> DataDir:
    """Reads a data directory, checks it whole (the audio or feature files too), and returns it.

    Raises:
        UserError: as ``read_data_dir``; or spk2utt differs from utt2spk, or a file that a table names is not there.
    """
    data = read_data_dir(path, feats_type)
    spk2utt = data.path / "spk2utt"
    if spk2utt.is_file() and read_scp(spk2utt) != make_spk2utt(data.tables["utt2spk"]):
        raise UserError(f"{spk2utt}: does not fit {data.path / 'utt2spk'}; delete it or run the stage again")
    for where, value, file in data.files():
        if not is_file(file):
            raise UserError(f"{where}: there is no file {value}; mend the line or make the file")
    _check_segments_end(data)
    if WORD_TIMES in data.notes:
        read_word_times(data.path / WORD_TIMES)
    return data


def _check_segments_end(data: DataDir) -> None:
    lengths: dict[str, tuple[int, int]] = {}
    has_times = {"segments", "wav.scp"} <= data.tables.keys()
    for number, (utt_id, clip) in enumerate(data.clips().items() if has_times else (), 1):
        if clip.path not in lengths:
            lengths[clip.path] = count_samples(clip.path)
        count, rate = lengths[clip.path]
        if clip.span is not None:
            clip.span.samples(rate, count, f"{data.path / 'segments'}:{number}: {utt_id}")


def refuse_to_replace_files(data: DataDir, out: Path) -> None:
    """Raises UsageError if a file that ``data`` names lies in ``out``, a folder that is to be replaced."""
    if not out.exists():
        return
    folder = out.resolve()
    for where, value, file in data.files():
        if folder in Path(file).resolve().parents:
            raise UsageError(f"{out}: is to be replaced but holds {value}, which {where} needs; give another folder")


def make_spk2utt(utt2spk: Mapping[str, str]) -> Table:
    """Turns utt2spk round: speaker -> its utterances, sorted, with a space between."""
    utterances: dict[str, list[str]] = {}
    for utt_id in sorted(utt2spk):
        utterances.setdefault(utt2spk[utt_id], []).append(utt_id)
    return {speaker: " ".join(utterances[speaker]) for speaker in sorted(utterances)}


def _check_complete(data: DataDir, feats_type: str | None) -> None:
    if feats_type is not None and feats_type not in _SOURCE_OF:
        raise UserError(f"{data.path / 'feats_type'}: {feats_type!r} is not known; write raw or extracted")
    source = _SOURCE_OF[feats_type] if feats_type else data.source
    sound = ("wav.scp",) if source == "segments" else ()  # times of a recording are nothing without it
    for name in (source, *sound, "text", "utt2spk"):
        if name not in data.tables:
            raise UserError(f"{data.path / name}: no such file; run the stage that makes {data.path} again")


def _check_tables(data: DataDir) -> None:
    source = data.source
    if "segments" in data.tables and "wav.scp" in data.tables:
        _check_recordings(data)
    if not data.tables[source]:
        raise UserError(f"{data.path / source}: lists no utterances; run the stage that makes {data.path} again")
    for name, table in data.tables.items():
        _check_lines(data.path / name, table)
        of_recordings = name == "wav.scp" and "segments" in data.tables
        if table.keys() != data.tables[source].keys() and not of_recordings:
            raise _difference(data, source, name)


def _check_recordings(data: DataDir) -> None:
    """With segments, wav.scp lists recordings: those that the segments are cut from."""
    data.clips()  # checks every line
    used = {line.split()[0] for line in data.tables["segments"].values()}
    for number, recording in enumerate(data.tables["wav.scp"], 1):
        if recording not in used:
            where = f"{data.path / 'wav.scp'}:{number}"
            raise UserError(f"{where}: {recording!r} is not in {data.path / 'segments'}; add its segments or delete it")


def _check_lines(path: Path, table: Table) -> None:
    previous = ""
    counts = path.name.startswith("utt2num_")
    for number, (key, value) in enumerate(table.items(), 1):
        if _BAD_ID.search(key) or (path.name == "utt2spk" and _BAD_ID.search(value)):
            raise UserError(f"{path}:{number}: an id must not begin with '.' nor hold / \\ or control signs; rename it")
        if key < previous:
            raise UserError(f"{path}:{number}: {key!r} is out of order; sort the file with LC_ALL=C sort")
        if counts and not (is_count(value) and int(value) > 0):
            raise UserError(f"{path}:{number}: {value!r} is not a count above 0; run the stage that makes it again")
        if path.name == "wav.scp":
            _refuse_command(value, f"{path}:{number}")
        if path.name == "feats.scp":
            split_place(value, f"{path}:{number}")
        odd = _ODD_BLANK.search(value) if path.name == "text" else None
        if odd:
            raise UserError(f"{path}:{number}: {odd[0]!a} between words is no blank to every tool; put blanks instead")
        if path.name == "text" and (signs := invisible_signs(value)):
            raise _invisible(signs, f"{path}:{number}", table)
        if path.name == "utt2spk" and len(value.split()) != 1:
            raise UserError(f"{path}:{number}: a speaker is one word, not {value!r}; mend the line")
        previous = key


def _invisible(signs: str, where: str, texts: Table) -> UserError:
    count = sum(len(invisible_signs(text)) for text in texts.values())
    octets = "".join(f"\\x{octet:02x}" for octet in signs[0].encode())
    return UserError(
        f"{where}: {signs[0]!a} is invisible, but a model would learn it as a letter ({count} such signs in the file); remove it "
        f"(LC_ALL=C sed -i 's/{octets}//g')"
    )


def read_wav_scp(path: Path) -> Table:
    """Reads ``wav.scp``: paths of audio files by id. Raises UserError for anything else."""
    table = read_scp(path)
    for number, value in enumerate(table.values(), 1):
        _refuse_command(value, f"{path}:{number}")
    return table


def _refuse_command(value: str, where: str) -> None:
    """Kaldi's tools would give it to a shell."""
    if value.endswith("|"):
        raise UserError(f"{where}: commands are not run; write the audio into a file and give its path")


def _difference(data: DataDir, source: str, name: str) -> UserError:
    here, there = data.tables[source], data.tables[name]
    for utt_id in here:
        if utt_id not in there:
            return UserError(f"{data.where(source, utt_id)}: {utt_id!r} is not in {data.path / name}; add or delete it")
    extra = next(utt_id for utt_id in there if utt_id not in here)
    return UserError(f"{data.where(name, extra)}: {extra!r} is not in {data.path / source}; add or delete it")
