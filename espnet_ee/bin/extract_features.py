"""Stores the log-mel features that ESPnet's default frontend computes, in Kaldi archives."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_ee.data.features import extract_features
from espnet_ee.errors import run


def get_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--in", dest="source", required=True, type=Path, metavar="DIR", help="data directory to read")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="data directory to make or replace")
    parser.add_argument("--frontend_conf", type=Path, metavar="YAML", help="options of DefaultFrontend (its defaults)")
    parser.add_argument("--nj", type=int, default=1, help="number of processes (1)")
    parser.add_argument("--compress", action="store_true", help="8 bits a value as Kaldi does; not exact any more")
    parser.add_argument("--max_skipped", type=float, default=0, help="percentage of broken utterances to skip (0)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = get_parser().parse_args(arguments)
    made = extract_features(args.source, args.out, args.frontend_conf, args.nj, args.compress, args.max_skipped)
    print(made.describe(args.out))


if __name__ == "__main__":
    run(main)
