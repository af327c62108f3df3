"""The project's user-facing errors and how a command reports them.

Imports nothing but the standard library, so every part of the package may use it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path


class UserError(Exception):
    """Something the user can mend. The message is one line: what is wrong, where, and what to do."""

    exit_status = 1


class UsageError(UserError):
    """A command was called with options that do not exist or do not fit together."""

    exit_status = 2


def run(main: Callable[[], None]) -> None:
    """Runs a command's ``main``; turns a :class:`UserError` into one line on stderr and an exit status.

    Any other exception is a bug and keeps its traceback.
    """
    try:
        main()
    except UserError as error:
        name = Path(sys.argv[0]).stem
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_status)
    except BrokenPipeError:
        # The reader of our output went away (`... | head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
