"""Drops utterances that are too short, too long or without a transcript (training and validation sets only)."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_ee.data.length_filter import filter_lengths
from espnet_ee.errors import run


def get_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--in", dest="source", required=True, type=Path, metavar="DIR", help="data directory to read")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="data directory to make or replace")
    parser.add_argument("--min_seconds", type=float, default=0.1, help="shortest utterance kept (0.1)")
    parser.add_argument("--max_seconds", type=float, default=30.0, help="longest utterance kept (30)")
    parser.add_argument("--fs", type=int, default=16000, help="sampling rate in Hz of utt2num_samples (16000)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = get_parser().parse_args(arguments)
    survivors = filter_lengths(args.source, args.out, args.min_seconds, args.max_seconds, args.fs)
    print(f"{args.out}: {survivors}")


if __name__ == "__main__":
    run(main)
