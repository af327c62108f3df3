"""Makes the data directories of a corpus."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_ee.data.prepare import prepare_set
from espnet_ee.data.registry import CORPORA, open_corpus
from espnet_ee.errors import run


def get_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--corpus", required=True, choices=list(CORPORA), help="which corpus it is")
    parser.add_argument("--corpus_root", required=True, type=Path, help="folder of the corpus")
    parser.add_argument("--out", required=True, type=Path, help="folder to make one data directory per set in")
    parser.add_argument("--parts", default="", help="sets to make, e.g. 'train-clean-5 dev=dev-clean+dev-other' (all)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = get_parser().parse_args(arguments)
    corpus = open_corpus(args.corpus, args.corpus_root, args.parts.split())
    for name in corpus.sets:
        print(f"{args.out / name}: {prepare_set(corpus, name, args.out / name)} utterances")


if __name__ == "__main__":
    run(main)
