"""Rewrites the configuration of a model trained on stored features so that it takes audio; the text stays the same."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_ee.errors import run
from espnet_ee.store.train_config import write_raw_audio_config


def get_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--asr_train_config", required=True, type=Path, metavar="YAML", help="config.yaml of the model")
    parser.add_argument("--frontend", required=True, type=Path, metavar="YAML", help="frontend.yaml of its features")
    parser.add_argument("--out", required=True, type=Path, metavar="YAML", help="the configuration to write")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = get_parser().parse_args(arguments)
    write_raw_audio_config(args.asr_train_config, args.frontend, args.out)
    print(f"{args.out}: takes audio; use it with the same model file")


if __name__ == "__main__":
    run(main)
