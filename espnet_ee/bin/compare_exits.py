"""Compares two decodings of the same sets exit by exit, with paired bootstrap intervals, as a Markdown page.

Both are evidence tables of --all_exits true: of two trainings, of one exit or many.
The exits that both have are compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from espnet_ee.errors import UsageError, run
from espnet_ee.files import atomic_write
from espnet_ee.score.compare import comparison_page
from espnet_ee.score.grid import read_grid


def get_parser() -> argparse.ArgumentParser:
    """Returns the command's parser."""
    parser = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--evidence", type=Path, nargs="+", required=True, help="evidence tables, one a set")
    parser.add_argument("--other", type=Path, nargs="+", required=True, help="those of the other decoding, same order")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="the sets' references, same order")
    parser.add_argument("--names", nargs=2, default=["one", "other"], metavar="NAME", help="what the two are called")
    parser.add_argument("--title", default="Two decodings, exit by exit")
    parser.add_argument("--note", default="", help="a line under the title")
    parser.add_argument("--output", type=Path, help="Markdown file to write (default: print)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options, compares, writes."""
    options = get_parser().parse_args(arguments)
    if not len(options.evidence) == len(options.other) == len(options.text):
        raise UsageError("--evidence, --other and --text: give the same number of files for each")
    files = zip(options.evidence, options.other, options.text, strict=True)
    pairs = [(read_grid(evidence, text), read_grid(other, text)) for evidence, other, text in files]
    page = comparison_page(pairs, tuple(options.names), options.title, [options.note] if options.note else [])
    if options.output:
        with atomic_write(options.output) as stream:
            stream.write(page)
    else:
        print(page, end="")


if __name__ == "__main__":
    run(main)
