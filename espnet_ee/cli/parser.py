"""What the subcommands share: one kind of parser, and the options that several have, spelled alike."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

from espnet_ee.errors import UsageError


class Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviations and keeps the line breaks of its description; so do its subparsers."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **settings})

    def error(self, message: str) -> NoReturn:
        """One line, as of every other mistake."""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} ({self.prog} --help lists the options)\n")

    def option(self, name: str, text: str, **settings: Any) -> None:
        """Adds an option; ``text`` is its line of help."""
        default = settings.get("default")
        if isinstance(default, str | int | float) and default != "" and "action" not in settings:
            text = f"{text} ({default:g})" if isinstance(default, float) else f"{text} ({default})"
        self.add_argument(name, help=text, **settings)

    def path(self, name: str, text: str, kind: str = "DIR", **settings: Any) -> None:
        """Adds an option that is a path, or with ``nargs`` several."""
        self.option(name, text, type=_path, metavar=kind, **settings)


def add_model(parser: Parser) -> None:
    """The option ``--model`` of what recognises."""
    what = "folder of a package, an experiment (exp/asr_...) or an export, or a name on the hub"
    parser.option("--model", what, required=True, type=not_empty)


def not_empty(word: str) -> str:
    """A word of a command line: nothing, as of a shell's variable that is not set, would mean the folder where one happens to be."""
    if not word:
        raise argparse.ArgumentTypeError("is empty; name a file or a folder (. is this one)")
    return word


def _path(word: str) -> Path:
    return Path(not_empty(word))


def refuse_input(out: Path | None, inputs: Iterable[Path | None]) -> None:
    """Raises UsageError where the file to be written is one that is read."""
    if out is not None and out.resolve() in {path.resolve() for path in inputs if path is not None}:
        raise UsageError(f"--out {out}: is one of the files to be read; give another name")
