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
from collections.abc import Mapping
from pathlib import Path

from espnet_ee.errors import UserError
from espnet_ee.policy.table import NUMBERS, EvidenceTable, gather, parse_row, read_cells, read_seconds

NEEDED = ("utt_id", "exit_layer", "reference", "hypothesis", "entropy")
_KNOWN = (*NEEDED, *NUMBERS, "posterior", "audio_seconds", "encoder_macs", "head_macs", "frames")
_REMEDY = "see espnet_ee/score/imported.py for the format"


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
    references: dict[str, str] = {}
    words: dict[str, int] = {}
    rows = []
    for where, cell in read_cells(path, _lines(path), NEEDED, _KNOWN, _REMEDY):
        utt = cell["utt_id"]
        if references.setdefault(utt, cell["reference"]) != cell["reference"]:
            raise UserError(f"{where}: another reference of {utt} than above; keep one")
        length = cell.get("audio_seconds")
        try:
            row = parse_row(_complete(cell, words), cell["hypothesis"])
            rows.append((where, utt, read_seconds(length) if length else None, row))
        except ValueError as error:
            raise UserError(f"{where}: {error}; {_REMEDY}") from None
    rows.sort(key=lambda entry: entry[-1].evidence.layer)
    return gather(path, rows, _REMEDY), references


def _lines(path: str | Path) -> list[str]:
    try:
        # Spreadsheets write a mark at the start and Windows' line ends.
        return Path(path).read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; convert the file (iconv -t UTF-8)") from None


def _complete(cell: Mapping[str, str], words: dict[str, int]) -> dict[str, str]:
    """The cells of a row of ours: what is missing set to what it stands for, the hypothesis' words numbered as tokens."""
    numbers = [words.setdefault(word, len(words) + 1) for word in cell["hypothesis"].split()]
    return {
        "frames": str(max(1, len(cell["reference"]))),
        "encoder_macs": cell["exit_layer"],
        "head_macs": "0",
        **{name: value for name, value in cell.items() if value},
        "utt_id": cell["utt_id"],
        "exit_layer": cell["exit_layer"],
        "tokens": " ".join(map(str, numbers)),
        "nbest_scores": " ".join(map(repr, _scores(cell.get("posterior") or ""))),
    }


def _scores(posterior: str) -> tuple[float, ...]:
    """Two hypotheses of which the first has this posterior: all that the policy ``posterior`` looks at."""
    if not posterior:
        return ()
    share = float(posterior)
    if not 0 < share <= 1:
        raise ValueError(f"the posterior is {posterior}, not in 0..1")
    return (math.log(share), math.log(1 - share)) if share < 1 else (0.0, -1e9)
