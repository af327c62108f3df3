"""Replays exit policies at any thresholds on an evidence table: nothing is decoded again.

The table is one of --all_exits true (with --text), or of the import format that espnet_ee/score/imported.py describes.
Prints a table with tabs between its columns: policy, threshold, WER in per cent, errors, words, mean exit layer,
MACs per second of audio, and the measured real-time factor where the times are known.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_ee.errors import run
from espnet_ee.files import atomic_write
from espnet_ee.score.grid import read_grid
from espnet_ee.score.replay import replay_table


def get_parser() -> argparse.ArgumentParser:
    """Returns the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--evidence", type=Path, required=True, help="evidence table")
    parser.add_argument("--text", type=Path, help="its references (not for an imported table)")
    parser.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="NAME[=T,T,...]",
        help="policy, perhaps with thresholds (of fixed: layers); may be given again",
    )
    parser.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="YAML[=T,T,...]",
        help="decoding configuration, for a policy with more settings (learned); may be given again",
    )
    parser.add_argument("--thresholds", type=int, default=20, help="thresholds of a policy that came without (default 20)")
    parser.add_argument("--output", type=Path, help="file to write (default: print)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options, replays, prints."""
    options = get_parser().parse_args(arguments)
    table = replay_table(read_grid(options.evidence, options.text), options.policy, options.config, options.thresholds)
    if options.output:
        with atomic_write(options.output) as stream:
            stream.write(table)
    else:
        print(table, end="")


if __name__ == "__main__":
    run(main)
