"""What the subcommands share: one kind of parser, and the options that several have, spelled alike."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


class Parser(argparse.ArgumentParser):
    """A parser that takes no abbreviations and keeps the line breaks of its description; so do its subparsers."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **settings})

    def option(self, name: str, text: str, **settings: Any) -> None:
        """Adds an option; ``text`` is its line of help."""
        default = settings.get("default")
        if isinstance(default, str | int | float) and default != "" and "action" not in settings:
            text = f"{text} ({default:g})" if isinstance(default, float) else f"{text} ({default})"
        self.add_argument(name, help=text, **settings)

    def path(self, name: str, text: str, kind: str = "DIR", **settings: Any) -> None:
        """Adds an option that is a path, or with ``nargs`` several."""
        self.option(name, text, type=Path, metavar=kind, **settings)
