"""Scores an experiment: WER and CER of every exit and policy, the curve, RESULTS.md."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from espnet_ee.errors import UsageError, run
from espnet_ee.score.experiment import ScoreOptions, score_experiment
from espnet_ee.score.page import print_summary


def get_parser() -> argparse.ArgumentParser:
    """Returns the command's parser."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--exp_dir", type=Path, required=True, help="experiment folder; the results go into it")
    parser.add_argument("--data_root", type=Path, required=True, help="folder with SET/text for every set, e.g. dump/raw")
    parser.add_argument("--valid_set", required=True, help="set whose evidence gives the sweep's thresholds")
    parser.add_argument("--test_sets", required=True, help="sets to score, separated by spaces")
    parser.add_argument("--all_exits_tag", default="decode_all_exits", help="decoding that kept all exits")
    parser.add_argument("--separate_exps", default="", help="scored experiments of separately trained depths")
    parser.add_argument("--command", default="", help="command line to report (default: this one)")
    parser.add_argument("--note", action="append", default=[], help="line for RESULTS.md; may be given again")
    parser.add_argument("--date", default="", help="date to report (default: none, so that a rerun gives the same bytes)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options, scores, prints the summary."""
    options = get_parser().parse_args(arguments)
    if not options.test_sets.split():
        raise UsageError("--test_sets: names no set; give at least one")
    given = sys.argv[1:] if arguments is None else arguments
    page = score_experiment(
        ScoreOptions(
            exp=options.exp_dir,
            data_root=options.data_root,
            valid_set=options.valid_set,
            test_sets=options.test_sets.split(),
            separate=[Path(folder) for folder in options.separate_exps.split()],
            command=options.command or shlex.join(["python3", "-m", "espnet_ee.bin.score", *given]),
            notes=options.note,
            date=options.date,
            every_exit=options.all_exits_tag,
        )
    )
    print_summary(page, sys.stdout)


if __name__ == "__main__":
    run(main)
