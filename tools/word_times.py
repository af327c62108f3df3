#!/usr/bin/env python3
"""How well words' times are met, where they are known: of two CTM files, those of synthetic speech and those of a model.

    espnet-ee data mini --out corpus                      # corpus/MiniSpeech/words.ctm: when each word is said
    espnet-ee transcribe data/dev/wav.scp --model EXP --format ctm > dev.ctm
    espnet-ee transcribe data/test/wav.scp --model EXP --format ctm > test.ctm
    python3 tools/word_times.py --known corpus/MiniSpeech/words.ctm --found test.ctm --dev dev.ctm

Compares the words that both have (the longest common part of their texts). A model may say its tokens early or late by about the same
time always, which nothing in its training forbids: the median over --dev is taken off in the last column (calibration takes it off by
itself where the development set has words.ctm).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from espnet_ee.data.word_times import read_word_times
from espnet_ee.decode.word_times import WITHIN, lateness
from espnet_ee.errors import UserError, run


def main() -> None:
    """Prints a line for the starts and one for the ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--known", type=Path, required=True, help="CTM of the true times")
    parser.add_argument("--found", type=Path, required=True, help="CTM of a model")
    parser.add_argument("--dev", type=Path, help="CTM of the same model on other recordings of the known ones")
    parser.add_argument("--within", type=float, default=WITHIN, help=f"seconds ({WITHIN})")
    arguments = parser.parse_args()
    known, tables = read_word_times(arguments.known), []
    for path in (arguments.found, arguments.dev):
        table = np.array(list(lateness(known, read_word_times(path)))) if path else None
        if table is not None and not len(table):
            raise UserError(f"{path}: has no word of {arguments.known}; check that recordings are called alike")
        tables.append(table)
    found, dev = tables
    for column, name in enumerate(("start", "end")):
        late = found[:, column]
        met = 100 * np.mean(np.abs(late) <= arguments.within)
        line = f"{name:5s} {len(late)} words, median {np.median(late):+.3f} s, within {arguments.within:g} s {met:.1f} %"
        if dev is not None:
            shift = np.median(dev[:, column])
            met = 100 * np.mean(np.abs(late - shift) <= arguments.within)
            line += f"; without the {shift:+.3f} s of --dev {met:.1f} %"
        print(line)


if __name__ == "__main__":
    run(main)
