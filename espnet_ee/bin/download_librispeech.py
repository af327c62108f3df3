"""Downloads parts of LibriSpeech; what is there already is left alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_ee.data.download import ARCHIVES, BASE_URL, download_parts
from espnet_ee.data.librispeech import parts_of
from espnet_ee.errors import run


def get_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to make LibriSpeech/PART in")
    parser.add_argument("--parts", required=True, help=f"parts or sets of parts, of: {' '.join(ARCHIVES)}")
    parser.add_argument("--hold_out", type=int, default=0, help="as for prepare_data: dev and test are no parts (0)")
    parser.add_argument("--url", default=BASE_URL, help=f"the site or a mirror of it ({BASE_URL})")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = get_parser().parse_args(arguments)
    for folder in download_parts(parts_of(args.parts.split(), args.hold_out), args.out, args.url):
        print(f"{folder}: there")


if __name__ == "__main__":
    run(main)
