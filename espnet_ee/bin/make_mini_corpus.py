"""Makes the mini corpus: synthetic English-like sentences to try the whole recipe on, without any download."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_ee.data.mini.make import make_corpus
from espnet_ee.errors import run


def get_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to make MiniSpeech in")
    parser.add_argument("--nj", type=int, default=1, help="number of processes (1)")
    parser.add_argument(
        "--utterances_per_speaker", type=int, default=70, help="of each training speaker; 2/7 of it for others (70)"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed is another corpus (0)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = get_parser().parse_args(arguments)
    counts = make_corpus(args.out, args.nj, args.utterances_per_speaker, args.seed)
    for name, count in counts.items():
        print(f"{args.out / 'MiniSpeech' / name}: {count} utterances")


if __name__ == "__main__":
    run(main)
