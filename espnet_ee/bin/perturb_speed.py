"""Adds faster and slower copies of every utterance to a data directory."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_ee.data.speed import check_factors, perturb_speed
from espnet_ee.errors import run


def get_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--in", dest="source", required=True, type=Path, metavar="DIR", help="data directory to read")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="data directory to make or replace")
    parser.add_argument("--factors", default="0.9 1.0 1.1", help="speeds; 1.0 is the recording ('0.9 1.0 1.1')")
    parser.add_argument("--audio_dir", required=True, type=Path, metavar="DIR", help="folder for the new audio")
    parser.add_argument("--nj", type=int, default=1, help="number of processes (1)")
    parser.add_argument("--max_skipped", type=float, default=0, help="percentage of broken utterances to skip (0)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = get_parser().parse_args(arguments)
    factors = check_factors(args.factors.split())
    made = perturb_speed(args.source, args.out, factors, args.audio_dir, args.nj, args.max_skipped)
    print(made.describe(args.out))


if __name__ == "__main__":
    run(main)
