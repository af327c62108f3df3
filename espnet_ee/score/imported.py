"""Reads a table of exits that another program made, so that its model can be studied with our policies.

A TSV file with a header and one row for each utterance and exit, in any order. Columns, in any order:

==================  =====================================================================================
``utt_id``          needed
``exit_layer``      needed: 1-based number of the block the exit follows
``reference``       needed: what was said; the same in all rows of an utterance
``hypothesis``      needed: the exit's text
``entropy``         needed: mean frame entropy
``posterior``       N-best posterior of the best hypothesis, in 0..1
``audio_seconds``   length of the utterance; 1 where it is missing
``encoder_macs``    multiply-accumulates up to this exit; the exit layer where it is missing, so that compute counts
                    layers
``head_macs``       those of the exit's head; 0 where it is missing
``frames``          encoder frames; the number of the reference's characters where it is missing
``confidence`` ``blank_share`` ``score`` ``spoken_confidence`` ``token_confidence``
                    as in our own tables (:class:`espnet_ee.policy.evidence.ExitEvidence`)
==================  =====================================================================================

The policy ``confidence`` reads ``spoken_confidence``; ``learned`` reads what its features are made of (with the default ones
``token_confidence``). An empty cell is a missing one. The words of the hypothesis stand for its tokens.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from espnet_ee.errors import UserError
from espnet_ee.policy.evidence import ExitEvidence
from espnet_ee.policy.table import NUMBERS, EvidenceRow, EvidenceTable, Utterance, read_seconds

NEEDED = ("utt_id", "exit_layer", "reference", "hypothesis", "entropy")
_KNOWN = (*NEEDED, *NUMBERS, "posterior", "audio_seconds", "encoder_macs", "head_macs", "frames")


def is_imported(path: str | Path) -> bool:
    """Says whether a table is of the import format: it holds its references, ours never does."""
    try:
        with Path(path).open("rb") as stream:  # what is not UTF-8 is said when it is read
            return b"reference" in stream.readline().removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n").split(b"\t")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; decode every exit first") from None


def read_imported(path: str | Path) -> tuple[EvidenceTable, dict[str, str]]:
    """Reads a table of the import format.

    Returns:
        The evidence, and the references by utterance id.

    Raises:
        UserError: a column or a value is missing or unknown, or the utterances' exits differ.
    """
    exits_of: dict[str, list[EvidenceRow]] = {}
    references: dict[str, str] = {}
    seconds: dict[str, float] = {}
    words: dict[str, int] = {}
    for where, cell in _cells(path):
        utt = cell["utt_id"]
        try:
            if references.setdefault(utt, cell["reference"]) != cell["reference"]:
                raise UserError(f"{where}: another reference of {utt} than above; keep one")
            length = cell.get("audio_seconds")
            if length and seconds.setdefault(utt, read_seconds(length)) != float(length):
                raise UserError(f"{where}: other audio_seconds of {utt} than above; keep one")
            exits_of.setdefault(utt, []).append(_row(cell, words))
        except ValueError as error:
            raise UserError(f"{where}: {error}; see espnet_ee/score/imported.py for the format") from None
    if not exits_of:
        raise UserError(f"{path}: no row below the header")
    rows = {utt: tuple(sorted(exits_of[utt], key=lambda row: row.evidence.layer)) for utt in sorted(exits_of)}
    layers = tuple(row.evidence.layer for row in next(iter(rows.values())))
    for utt, exits in rows.items():
        if tuple(row.evidence.layer for row in exits) != layers or len(set(layers)) != len(layers):
            raise UserError(f"{path}: {utt} does not have one row for each of the exits {layers}")
    return EvidenceTable(layers, {utt: Utterance(seconds.get(utt, 1.0), rows[utt]) for utt in rows}), references


def _cells(path: str | Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields file and line of every row, and its cells by column; the header is checked."""
    try:
        # Spreadsheets write a mark at the start and Windows' line ends.
        lines = Path(path).read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; convert the file (iconv -t UTF-8)") from None
    columns = lines[0].split("\t")
    _check_columns(path, tuple(columns))
    for number, line in enumerate(lines[1:], 2):
        if not line:
            continue
        cells = line.split("\t")
        if len(cells) != len(columns):
            raise UserError(f"{path}:{number}: {len(cells)} fields, the header has {len(columns)}; a text may hold no tab")
        yield f"{path}:{number}", dict(zip(columns, cells, strict=True))


def _check_columns(path: str | Path, columns: tuple[str, ...]) -> None:
    for name in NEEDED:
        if name not in columns:
            raise UserError(f"{path}:1: the column {name!r} is missing; needed are {', '.join(NEEDED)}")
    for name in columns:
        if name not in _KNOWN:
            raise UserError(f"{path}:1: unknown column {name!r}; known are {', '.join(_KNOWN)}")
        if columns.count(name) > 1:
            raise UserError(f"{path}:1: the column {name!r} is there twice; keep one")


def _row(cell: Mapping[str, str], words: dict[str, int]) -> EvidenceRow:
    layer = int(cell["exit_layer"])
    numbers = {name: float(cell[name]) for name in NUMBERS if cell.get(name)}
    tokens = tuple(words.setdefault(word, len(words) + 1) for word in cell["hypothesis"].split())
    evidence = ExitEvidence(
        layer=layer,
        tokens=tokens,
        frames=int(cell.get("frames") or max(1, len(cell["reference"]))),
        nbest_scores=_scores(cell.get("posterior") or ""),
        **numbers,
    )
    encoder_macs, head_macs = int(cell.get("encoder_macs") or layer), int(cell.get("head_macs") or 0)
    return EvidenceRow(evidence, cell["hypothesis"], encoder_macs, head_macs)


def _scores(posterior: str) -> tuple[float, ...]:
    """Two hypotheses of which the first has this posterior: all that the policy ``posterior`` looks at."""
    if not posterior:
        return ()
    share = float(posterior)
    if not 0 < share <= 1:
        raise ValueError(f"the posterior is {posterior}, not in 0..1")
    return (math.log(share), math.log(1 - share)) if share < 1 else (0.0, -1e9)
