"""Makes the token list of a training, and for BPE the sentencepiece model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_ee.data.tokens import make_tokens
from espnet_ee.errors import run


def get_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--text", required=True, type=Path, nargs="+", help="Kaldi text files of the training data")
    parser.add_argument("--token_type", required=True, choices=("char", "bpe"), help="what a token is")
    parser.add_argument("--nbpe", type=int, help="number of tokens (needed for bpe)")
    parser.add_argument("--model_type", choices=("bpe", "unigram"), default="bpe", help="kind of pieces (bpe)")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for tokens.txt and bpe.model")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = get_parser().parse_args(arguments)
    tokens = make_tokens(args.text, args.token_type, args.out, args.nbpe, args.model_type)
    print(f"{args.out / 'tokens.txt'}: {len(tokens)} tokens")


if __name__ == "__main__":
    run(main)
