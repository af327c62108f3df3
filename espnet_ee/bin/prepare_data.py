"""Makes the data directories of a corpus."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_ee.data.prepare import prepare_set, write_lm_text
from espnet_ee.data.registry import CORPORA, open_corpus
from espnet_ee.errors import run


def get_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--corpus", required=True, choices=list(CORPORA), help="which corpus it is")
    parser.add_argument("--corpus_root", required=True, type=Path, help="folder of the corpus")
    parser.add_argument("--out", required=True, type=Path, help="folder to make one data directory per set in")
    parser.add_argument("--parts", default="", help="sets to make, e.g. 'train-clean-5 dev=dev-clean+dev-other' (all)")
    parser.add_argument("--corpus_options", default="", help="'name=value ...' for what only this corpus has")
    parser.add_argument("--max_skipped", type=float, default=0, help="percentage of broken utterances to skip (0)")
    parser.add_argument("--skip_in", default="", help="the sets in which they may be skipped: never those to be scored")
    parser.add_argument("--lm_text", type=Path, metavar="FILE", help="write the corpus' text for language models here")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = get_parser().parse_args(arguments)
    options = dict(word.partition("=")[::2] for word in args.corpus_options.split())
    corpus = open_corpus(args.corpus, args.corpus_root, args.parts.split(), options)
    for name in corpus.sets:
        limit = args.max_skipped if name in args.skip_in.split() else 0
        print(prepare_set(corpus, name, args.out / name, limit).describe(args.out / name))
    if args.lm_text:
        print(f"{args.lm_text}: {write_lm_text(corpus, args.lm_text)} sentences")


if __name__ == "__main__":
    run(main)
