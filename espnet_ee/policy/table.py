"""The evidence table: what every exit said of every utterance, decoded once, replayed under any policy.

A TSV file with a header: one row for each utterance and exit, utterances sorted, exits rising. Floats are written by
``repr`` and read back bit by bit, so that a replay compares the very numbers the online decoder compares.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_ee.errors import UserError
from espnet_ee.files import atomic_write
from espnet_ee.policy.evidence import ExitEvidence

# Without these no exit can be chosen and nothing counted.
NEEDED = ("utt_id", "exit_layer", "frames", "audio_seconds", "encoder_macs", "head_macs", "tokens", "hypothesis")
# What an older table may lack, and a later one leave empty: then it is not known, and no policy stops at it.
NUMBERS = ("entropy", "confidence", "blank_share", "score", "spoken_confidence", "token_confidence")
COLUMNS = (*NEEDED[:4], *NUMBERS, *NEEDED[4:6], "nbest_scores", *NEEDED[6:], "word_confidences")
# Of models with cluster heads, and of no other.
CLUSTER_COLUMNS = ("cluster_entropy",)
# Of a decoding with attention decoders, and of no other.
DECODER_COLUMNS = ("decoder_log_prob", "decoder_macs", "decoder_scores")
_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"}
_UNESCAPES = {escape[1]: char for char, escape in _ESCAPES.items()}


@dataclass(frozen=True)
class EvidenceRow:
    """One exit of one utterance.

    Attributes:
        evidence: what the policy sees.
        hypothesis: the exit's text.
        encoder_macs: multiply-accumulates from the front of the encoder up to and including this exit's block.
        head_macs: those of this exit's head and evidence alone.
        confidences: of the words of the hypothesis, in 0..1, as the model has them; empty where they are not known.
        decoder_macs: those of a search with this exit's attention decoder; 0 where there was none.
    """

    evidence: ExitEvidence
    hypothesis: str
    encoder_macs: int
    head_macs: int
    confidences: tuple[float, ...] = ()
    decoder_macs: int = 0


@dataclass(frozen=True)
class Utterance:
    """One utterance: its length in seconds of audio and a row for every exit, in the order of the exits."""

    audio_seconds: float
    rows: tuple[EvidenceRow, ...]

    @property
    def evidence(self) -> tuple[ExitEvidence, ...]:
        """The evidence of all exits, as :func:`espnet_ee.policy.base.choose_exit` takes it."""
        return tuple(row.evidence for row in self.rows)


@dataclass(frozen=True)
class EvidenceTable:
    """The utterances of one set with the model's exit layers."""

    exit_layers: tuple[int, ...]
    utterances: dict[str, Utterance]


def macs_of_stop(rows: Sequence[EvidenceRow], index: int, needs_every_exit: bool, needs_every_search: bool = False) -> int:
    """Multiply-accumulates of stopping at exit ``index`` (0-based), with its own head and decoder, or those of every exit up to
    it."""
    heads, decoders = (rows[0 if every else index : index + 1] for every in (needs_every_exit, needs_every_search))
    return rows[index].encoder_macs + sum(row.head_macs for row in heads) + sum(row.decoder_macs for row in decoders)


def write_table(path: str | Path, table: EvidenceTable) -> None:
    """Writes the table atomically, utterances sorted by id (C locale order)."""
    rows = [row.evidence for utterance in table.utterances.values() for row in utterance.rows]
    more = CLUSTER_COLUMNS if any(not math.isnan(evidence.cluster_entropy) for evidence in rows) else ()
    searched = any(row.decoder_macs for utterance in table.utterances.values() for row in utterance.rows)
    with atomic_write(path) as stream:
        stream.write("\t".join((*COLUMNS, *more, *(DECODER_COLUMNS if searched else ()))) + "\n")
        for utt_id in sorted(table.utterances):
            utterance = table.utterances[utt_id]
            layers = tuple(row.evidence.layer for row in utterance.rows)
            if layers != table.exit_layers:
                raise ValueError(f"{utt_id}: rows of layers {layers} in a table of {table.exit_layers}")
            for row in utterance.rows:
                cells = [
                    *_fields(utt_id, utterance.audio_seconds, row),
                    *(_number(getattr(row.evidence, name)) for name in more),
                    *(_decoder_fields(row) if searched else ()),
                ]
                stream.write("\t".join(cells) + "\n")


def _fields(utt_id: str, audio_seconds: float, row: EvidenceRow) -> list[str]:
    evidence = row.evidence
    return [
        utt_id,
        str(evidence.layer),
        str(evidence.frames),
        repr(float(audio_seconds)),
        *(_number(getattr(evidence, name)) for name in NUMBERS),
        str(row.encoder_macs),
        str(row.head_macs),
        _list(evidence.nbest_scores),
        " ".join(map(str, evidence.tokens)),
        escape(row.hypothesis),
        " ".join(f"{value:.4f}" for value in row.confidences),
    ]


def _decoder_fields(row: EvidenceRow) -> list[str]:
    return [_number(row.evidence.decoder_log_prob), str(row.decoder_macs), _list(row.evidence.decoder_scores)]


def _number(value: float) -> str:
    """An empty cell says "not known". float() first: NumPy's scalars print as np.float32(...)"""
    return "" if math.isnan(value) else repr(float(value))


def _list(values: Iterable[float]) -> str:
    return " ".join(repr(float(value)) for value in values)


def read_table(path: str | Path) -> EvidenceTable:
    """Reads an evidence table.

    Raises:
        UserError: the file is missing, empty or not a table, or an utterance lacks an exit (named with its line).
    """
    remedy = "decode with --every_exit again"
    try:
        # Not splitlines(): a hypothesis may hold one of the other characters it splits at.
        *lines, rest = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; decode with --every_exit first") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; {remedy}") from None
    if lines and rest:
        raise UserError(f"{path}:{len(lines) + 1}: the last line is cut off; {remedy}")
    rows = []
    for where, cell in read_cells(path, lines or [rest], NEEDED, (*COLUMNS, *CLUSTER_COLUMNS, *DECODER_COLUMNS), remedy):
        try:
            row = parse_row(cell, _unescape(cell["hypothesis"]))
            rows.append((where, cell["utt_id"], read_seconds(cell["audio_seconds"]), row))
        except ValueError as error:
            raise UserError(f"{where}: {error}; {remedy}") from None
    return gather(path, rows, remedy)


def read_cells(
    path: str | Path, lines: Sequence[str], needed: Sequence[str], known: Sequence[str], remedy: str
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields file and line of every row of a TSV file, and its cells by column; the first line is the header, empty ones are passed over.

    Raises:
        UserError: a needed column is missing, one is unknown or there twice, or a row has more or fewer cells.
    """
    columns = lines[0].split("\t")
    for name in needed:
        if name not in columns:
            raise UserError(f"{path}:1: the column {name!r} is missing; needed are {', '.join(needed)}; {remedy}")
    for name in columns:
        if name not in known or columns.count(name) > 1:
            raise UserError(f"{path}:1: the column {name!r} is unknown or there twice; known are {', '.join(known)}; {remedy}")
    for number, line in enumerate(lines[1:], 2):
        cells = line.split("\t")
        if line and len(cells) != len(columns):
            raise UserError(f"{path}:{number}: {len(cells)} fields, expected {len(columns)}; a text may hold no tab; {remedy}")
        if line:
            yield f"{path}:{number}", dict(zip(columns, cells, strict=True))


def parse_row(cell: Mapping[str, str], hypothesis: str) -> EvidenceRow:
    """Makes a row of its cells; empty or missing ones among ``NUMBERS`` are not known.

    Raises:
        ValueError: a cell is no number, or one that no decoding gives: a policy would take it for an exit to stop at.
    """
    evidence = ExitEvidence(
        layer=int(cell["exit_layer"]),
        tokens=tuple(map(int, cell["tokens"].split())),
        frames=int(cell["frames"]),
        nbest_scores=tuple(map(float, cell.get("nbest_scores", "").split())),
        decoder_scores=tuple(map(float, cell.get("decoder_scores", "").split())),
        **{name: float(cell[name]) for name in _MEASURED if cell.get(name)},
    )
    confidences = tuple(map(float, cell.get("word_confidences", "").split()))
    counts = (int(cell["encoder_macs"]), int(cell["head_macs"]), int(cell.get("decoder_macs") or 0))
    row = EvidenceRow(evidence, hypothesis, *counts[:2], confidences, counts[2])
    if not cell["utt_id"]:
        raise ValueError("no utt_id")
    if evidence.layer < 1 or min(evidence.frames, *counts) < 0:
        raise ValueError("an exit layer below 1 or a count below 0")
    if confidences and (len(confidences) != len(hypothesis.split()) or not all(0 <= value <= 1 for value in confidences)):
        raise ValueError(f"word_confidences are {len(confidences)} numbers, not one in 0..1 for each word")
    for name in _MEASURED:
        low, high = _RANGES.get(name, (0.0, _MOST))
        if cell.get(name) and not low <= getattr(evidence, name) <= high:
            raise ValueError(f"{name} is {cell[name]}")
    return row


_MEASURED = (*NUMBERS, *CLUSTER_COLUMNS, DECODER_COLUMNS[0])
_MOST = sys.float_info.max  # less than infinity
# Shares and probabilities, up to the rounding of a mean; NaN is written as an empty cell.
_RANGES = {
    **dict.fromkeys(("confidence", "blank_share", "spoken_confidence", "token_confidence"), (-0.0001, 1 + 0.0001)),
    "score": (-_MOST, _MOST),
    "decoder_log_prob": (-_MOST, 0.0),
}


def read_seconds(text: str) -> float:
    """The length of an utterance. Raises ValueError if it is no number above 0."""
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise ValueError(f"an utterance of {text} seconds; its length must be above 0")
    return seconds


def escape(text: str) -> str:
    """A text as a cell of a table of lines and tabs.

    >>> escape("a\\tb")
    'a\\\\tb'
    """
    return "".join(_ESCAPES.get(char, char) for char in text)


def gather(path: str | Path, rows: Iterable[tuple[str, str, float | None, EvidenceRow]], remedy: str) -> EvidenceTable:
    """Puts the rows of a file together by utterance.

    Args:
        path: of the file, for messages.
        rows: file and line, utterance id, its length in seconds (None: not known here; nowhere: 1) and the row, those of an
            utterance with rising exits.
        remedy: what to do when something is wrong.

    Raises:
        UserError: there is no row, an utterance has two lengths, or two utterances have other exits.
    """
    exits: dict[str, list[EvidenceRow]] = {}
    seconds: dict[str, float] = {}
    for where, utt_id, length, row in rows:
        if length is not None and seconds.setdefault(utt_id, length) != length:
            raise UserError(f"{where}: other audio_seconds of {utt_id} than above; {remedy}")
        exits.setdefault(utt_id, []).append(row)
    if not exits:
        raise UserError(f"{path}: no utterance below the header; {remedy}")
    known = sorted({row.evidence.layer for own in exits.values() for row in own})
    for utt_id, own in exits.items():
        layers = [row.evidence.layer for row in own]
        if layers != known:
            each = " ".join(map(str, known))
            raise UserError(f"{path}: {utt_id} has rows of exits {layers}, not one for each of {each}, rising; {remedy}")
    return EvidenceTable(
        tuple(known), {utt_id: Utterance(seconds.get(utt_id, 1.0), tuple(exits[utt_id])) for utt_id in sorted(exits)}
    )


def _unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: _UNESCAPES.get(match[1], match[0]), text)
