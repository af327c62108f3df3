"""Writes the audio of a data directory as 16-bit FLAC at one sampling rate."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_ee.data.format_audio import format_audio
from espnet_ee.errors import run


def get_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--in", dest="source", required=True, type=Path, metavar="DIR", help="data directory to read")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="data directory to make or replace")
    parser.add_argument("--fs", type=int, default=16000, help="sampling rate in Hz (16000)")
    parser.add_argument("--nj", type=int, default=1, help="number of processes (1)")
    parser.add_argument("--max_skipped", type=float, default=0, help="percentage of broken utterances to skip (0)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = get_parser().parse_args(arguments)
    made = format_audio(args.source, args.out, args.fs, args.nj, args.max_skipped)
    print(made.describe(args.out))


if __name__ == "__main__":
    run(main)
