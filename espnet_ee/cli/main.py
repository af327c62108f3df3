"""The command ``espnet-ee``: which subcommands there are, and the one that is called."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Sequence

from espnet_ee import __version__
from espnet_ee.cli.parser import Parser
from espnet_ee.errors import open_streams, run

PROG = "espnet-ee"
COMMANDS = {
    "transcribe": ("transcribe", "audio files to text"),
    "align": ("align", "when the words of known texts are said, as CTM"),
    "data": ("data", "make, check and change data directories"),
    "decode": ("decode", "data directories to text and evidence, in one process"),
    "calibrate": ("score", "fit and calibrate exit policies on a development set's evidence"),
    "score": ("score", "score an experiment: RESULTS.md, report.html, exits.csv, curve.png"),
    "replay": ("score", "replay exit policies at any thresholds on an evidence table"),
    "compare": ("score", "compare two decodings exit by exit"),
    "compare-models": ("score", "set scored models side by side: COMPARISON.md, comparison.png"),
    "export": ("share", "write a model as ONNX for devices, or one exit as a plain ESPnet model"),
    "set-threshold": ("share", "change the threshold of exported ONNX files"),
    "raw-audio": ("share", "make a model of stored features take audio"),
    "pack": ("share", "pack a model with its policies and a model card"),
}
"""Subcommand -> the module of this room that has its options, and what it does."""

EPILOG = f"""\
`{PROG} COMMAND --help` lists a command's options. Exit status: 0; 2 when the command line is at fault; 1 for anything else.
ESPNET_EE_TRACEBACK=1 in the environment shows where a one-line error comes from.
ESPnet's own commands with the early-exit classes: python -m espnet_ee -m espnet2.bin.asr_train ...
"""


def get_parser(filled: Collection[str] = tuple(COMMANDS)) -> Parser:
    """The command's parser. Only the subcommands in ``filled`` get their options: they import what lists their choices."""
    parser = Parser(prog=PROG, description="Early-exit speech recognition.", epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if name in filled:
            add_options = f"add_{name.replace('-', '_')}"
            getattr(importlib.import_module(f"espnet_ee.cli.{module}"), add_options)(command)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command line (default: this process's)."""
    words = sys.argv[1:] if arguments is None else arguments
    options = get_parser(words[:1]).parse_args(words)
    options.run(options)


def entry() -> None:
    """What the shell calls: errors are one line and an exit status."""
    sys.argv[0] = PROG  # `python -m` puts a path here; errors begin with it
    open_streams()
    run(main)
