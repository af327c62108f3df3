"""The project's user-facing errors and how a command reports them.

Imports nothing but the standard library, so every part of the package may use it.
"""

from __future__ import annotations

import errno
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


_MENDABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
)
"""What the system says of a full disk, of permissions, and of paths: a file where a folder should be (or the reverse)."""


def is_mendable(error: OSError) -> bool:
    """Whether the system refused for want of space, permission or a right path: a file's content is not to blame."""
    return error.errno in _MENDABLE


def run(main: Callable[[], None]) -> None:
    """Runs a command's ``main``; turns a :class:`UserError` into one line on stderr and an exit status.

    So does a disk that is full or forbidden. Any other exception is a bug and keeps its traceback.
    """
    try:
        main()
    except UserError as error:
        _stop(str(error), error.exit_status)
    except BrokenPipeError:
        # The reader of our output went away (`... | head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if not is_mendable(error):
            raise
        place = f"{error.filename}: " if error.filename else ""
        _stop(f"{place}{error.strerror}; check space, permissions and the path", UserError.exit_status)


def _stop(message: str, status: int) -> None:
    print(f"{Path(sys.argv[0]).stem}: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
