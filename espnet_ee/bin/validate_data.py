"""Checks a data directory; tells the file and line of the first thing that is wrong."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_ee.data.datadir import validate_data_dir
from espnet_ee.errors import run


def get_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("directory", type=Path, metavar="DIR", help="data directory to check")
    parser.add_argument("--feats_type", choices=("raw", "extracted"), help="what it must hold (what it says itself)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = get_parser().parse_args(arguments)
    data = validate_data_dir(args.directory, args.feats_type)
    print(f"{args.directory}: {len(data.utt_ids)} utterances, {len(set(data.tables['utt2spk'].values()))} speakers")


if __name__ == "__main__":
    run(main)
