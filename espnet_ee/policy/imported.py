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
``confidence`` ``blank_share`` ``score`` ``entropy_tail`` ``spoken_confidence`` ``token_confidence``
``changed_share``   as in our own tables (:class:`espnet_ee.policy.evidence.ExitEvidence`)
==================  =====================================================================================

An empty cell is a missing one. The words of the hypothesis stand for its tokens.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

from espnet_ee.errors import UserError
from espnet_ee.policy.evidence import ExitEvidence
from espnet_ee.policy.table import EvidenceRow, EvidenceTable, Utterance

NEEDED = ("utt_id", "exit_layer", "reference", "hypothesis", "entropy")
_NUMBERS = (
    "confidence",
    "blank_share",
    "score",
    "entropy_tail",
    "spoken_confidence",
    "token_confidence",
    "changed_share",
)
_KNOWN = (*NEEDED, *_NUMBERS, "posterior", "audio_seconds", "encoder_macs", "head_macs", "frames")


def is_imported(path: str | Path) -> bool:
    """Says whether a table is of the import format: it holds its references, ours never does."""
    try:
        with Path(path).open(encoding="utf-8") as stream:
            return "reference" in stream.readline().rstrip("\r\n").split("\t")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; decode with --all_exits true first") from None


def read_imported(path: str | Path) -> tuple[EvidenceTable, dict[str, str]]:
    """Reads a table of the import format.

    Returns:
        The evidence, and the references by utterance id.

    Raises:
        UserError: a column or a value is missing or unknown, or the utterances' exits differ.
    """
    found: dict[str, list[EvidenceRow]] = {}
    references: dict[str, str] = {}
    seconds: dict[str, float] = {}
    words: dict[str, int] = {}
    with Path(path).open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        _check_columns(path, tuple(reader.fieldnames or ()))
        for number, cell in enumerate(reader, 2):
            where = f"{path}:{number}"
            try:
                if references.setdefault(cell["utt_id"], cell["reference"]) != cell["reference"]:
                    raise UserError(f"{where}: another reference of {cell['utt_id']} than above; keep one")
                seconds[cell["utt_id"]] = float(cell.get("audio_seconds") or 1.0)
                found.setdefault(cell["utt_id"], []).append(_row(cell, words))
            except (ValueError, TypeError, AttributeError) as error:
                raise UserError(f"{where}: {error}; see espnet_ee/policy/imported.py for the format") from None
    if not found:
        raise UserError(f"{path}: no row below the header")
    rows = {utt: tuple(sorted(found[utt], key=lambda row: row.evidence.layer)) for utt in sorted(found)}
    layers = tuple(row.evidence.layer for row in next(iter(rows.values())))
    for utt, exits in rows.items():
        if tuple(row.evidence.layer for row in exits) != layers or len(set(layers)) != len(layers):
            raise UserError(f"{path}: {utt} does not have one row for each of the exits {layers}")
    return EvidenceTable(layers, {utt: Utterance(seconds[utt], rows[utt]) for utt in rows}), references


def _check_columns(path: str | Path, columns: tuple[str, ...]) -> None:
    for name in NEEDED:
        if name not in columns:
            raise UserError(f"{path}:1: the column {name!r} is missing; needed are {', '.join(NEEDED)}")
    for name in columns:
        if name not in _KNOWN:
            raise UserError(f"{path}:1: unknown column {name!r}; known are {', '.join(_KNOWN)}")


def _row(cell: Mapping[str, str], words: dict[str, int]) -> EvidenceRow:
    layer = int(cell["exit_layer"])
    numbers = {name: float(cell[name]) if cell.get(name) else math.nan for name in _NUMBERS}
    tokens = tuple(words.setdefault(word, len(words) + 1) for word in cell["hypothesis"].split())
    evidence = ExitEvidence(
        layer=layer,
        tokens=tokens,
        entropy=float(cell["entropy"] or "nan"),
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
