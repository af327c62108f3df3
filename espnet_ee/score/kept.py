"""What lies beside an evidence table: ``timing.tsv`` and ``failed`` of the decoding, and ``errors.tsv``, so that nothing is aligned twice."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from espnet_ee.errors import UserError
from espnet_ee.files import atomic_write, file_digest, read_lines
from espnet_ee.kaldi import read_scp, write_scp
from espnet_ee.policy.table import EvidenceTable

FAILED = "failed"
"""Of utterances that could not be decoded: ``ID REASON`` a line. A decoding without it has every utterance."""

Seconds = Mapping[str, tuple[float, ...]]
Edits = tuple[np.ndarray, np.ndarray]  # of words and of characters: hits, substitutions, deletions, insertions (N, K, 4)

_EDITS = ("hits", "substitutions", "deletions", "insertions")
COLUMNS = ("utt_id", "exit_layer", *(f"{unit}_{edit}" for unit in ("word", "character") for edit in _EDITS))
_WAY = "1"  # to be raised when texts are aligned or put into normal form in another way


def write_failed(decoding: Path, reasons: Mapping[str, str]) -> None:
    """Lists the utterances that a decoding lacks, and why, in its folder."""
    if reasons:
        write_scp(decoding / FAILED, {utt: " ".join(reason.split()) for utt, reason in reasons.items()})


def read_failed(decoding: Path) -> dict[str, str]:
    """What :func:`write_failed` has written."""
    path = decoding / FAILED
    return read_scp(path) if path.exists() else {}


def write_timing(path: Path, exit_layers: tuple[int, ...], times: Seconds) -> None:
    """Writes for each utterance the seconds to the text of every exit."""
    rows = [(utt, layer, value) for utt, own in times.items() for layer, value in zip(exit_layers, own, strict=True)]
    with atomic_write(path) as stream:
        stream.write("utt_id\texit_layer\tseconds\n")
        stream.writelines(f"{utt}\t{layer}\t{value!r}\n" for utt, layer, value in rows)


def read_timing(path: Path, exit_layers: tuple[int, ...]) -> Seconds:
    """What :func:`write_timing` has written.

    Raises:
        UserError: a line is broken, or an utterance lacks an exit.
    """
    times: dict[str, dict[int, float]] = {}
    for number, line in enumerate(read_lines(path)[1:], 2):
        try:
            utt, layer, seconds = line.split("\t")
            if int(layer) in times.setdefault(utt, {}) or not 0 <= float(seconds) < math.inf:
                raise ValueError
            times[utt][int(layer)] = float(seconds)
        except ValueError:
            raise UserError(f"{path}:{number}: not utt_id, exit_layer, seconds, each exit once; decode again") from None
    for utt, exits in times.items():
        if tuple(sorted(exits)) != exit_layers:
            raise UserError(f"{path}: {utt} has times for exits {sorted(exits)}, expected {exit_layers}; decode again")
    return {utt: tuple(exits[layer] for layer in exit_layers) for utt, exits in times.items()}


def mark_of(evidence: Path, text: Path) -> str:
    """The line that says which evidence and which references the counts belong to."""
    digests = [file_digest(path, "sha256") for path in (evidence, text)]
    return f"# way {_WAY}, evidence {digests[0]}, text {digests[1]}"


def read_edits(path: Path, mark: str, table: EvidenceTable) -> Edits | None:
    """Reads the counts of an earlier alignment; None when there are none of just this evidence and these references."""
    try:
        first, _, *lines = path.read_text(encoding="utf-8").splitlines()
        counts = np.array([[int(cell) for cell in line.split("\t")[2:]] for line in lines])
        counts = counts.reshape(len(table.utterances), len(table.exit_layers), 2, 4)
    except (OSError, ValueError):  # a count that cannot be read is counted again
        return None
    return (counts[:, :, 0], counts[:, :, 1]) if first == mark else None


def write_edits(path: Path, mark: str, table: EvidenceTable, edits: Edits) -> None:
    """Writes the counts of every utterance (sorted) and exit, as the next stage, or a look at the hard ones, needs them."""
    counts = np.concatenate(edits, axis=-1)
    with atomic_write(path) as stream:
        stream.write(mark + "\n" + "\t".join(COLUMNS) + "\n")
        for utt, exits in zip(sorted(table.utterances), counts, strict=True):
            for layer, row in zip(table.exit_layers, exits.tolist(), strict=True):
                stream.write("\t".join([utt, str(layer), *map(str, row)]) + "\n")
