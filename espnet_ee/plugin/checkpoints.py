"""ESPnet's checkpoints: written whole or not at all; what cannot be read is set aside before a training goes on.

ESPnet writes ``checkpoint.pth``, then ``Nepoch.pth``, then the links to the best epochs, each in place. Cut off within or
between them (a crash, a full disk), no rerun would work, or one would go on with links to older epochs.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from espnet2.train import trainer
from espnet2.train.reporter import Reporter

from espnet_ee.errors import UserError
from espnet_ee.files import atomic_write

CHECKPOINT = "checkpoint.pth"
PREVIOUS = f"{CHECKPOINT}.old"  # of the epoch before: twice the space, so that a broken checkpoint costs one epoch and not all
Criteria = Sequence[Sequence[str]]
# What the reporter of ESPnet 202511 holds beside plain numbers: times, and NumPy's scalars.
_TYPES = ("float64", "float32", "int64")
_PLAIN: list[Any] = [timedelta, np.float64().__reduce__()[0], np.dtype, *(type(np.dtype(name)) for name in _TYPES)]


@contextmanager
def whole_files() -> Iterator[None]:
    """While this lasts, ``torch.save`` gives its file the name when it is whole, and averages leave lost epochs out."""
    stock_save, stock_average = torch.save, trainer.average_nbest_models

    def save(obj: object, f: Any, *rest: Any, **named: Any) -> None:
        if not isinstance(f, (str, os.PathLike)):
            stock_save(obj, f, *rest, **named)
            return
        path = Path(f)
        with atomic_write(path, "wb") as stream:
            _save_to(stream, path, lambda: stock_save(obj, stream, *rest, **named))
            if path.name == CHECKPOINT and path.exists():
                _keep_previous(path)

    def average(reporter: Reporter, output_dir: Path, best_model_criterion: Any, nbest: Any, **named: Any) -> None:
        counts = [nbest] if isinstance(nbest, int) else list(nbest)
        left = _epochs_left(reporter, output_dir)
        if len(left.stats) < len(reporter.stats):
            counts = sorted({min(count, len(left.stats)) for count in counts})
        stock_average(reporter=left, output_dir=output_dir, best_model_criterion=best_model_criterion, nbest=counts, **named)

    torch.save, trainer.average_nbest_models = save, average
    try:
        yield
    finally:
        torch.save, trainer.average_nbest_models = stock_save, stock_average


def _save_to(stream: Any, path: Path, save: Any) -> None:
    """Torch tells of a full disk by a RuntimeError of its own; what the system said is asked for again."""
    try:
        save()
    except RuntimeError as error:
        try:
            stream.write(bytes(1 << 16))
            stream.flush()
        except OSError as reason:
            raise OSError(reason.errno, reason.strerror, str(path)) from error
        raise


def _keep_previous(path: Path) -> None:
    temporary = path.with_name(f".{PREVIOUS}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
        os.replace(temporary, path.with_name(PREVIOUS))
    except OSError:  # a file system without links: for a moment there is only the previous one
        os.replace(path, path.with_name(PREVIOUS))


def _epochs_left(reporter: Reporter, folder: Path) -> Reporter:
    """The reporter without the epochs whose parameters are gone: broken, or more are to be averaged than were kept."""
    left = copy.copy(reporter)
    left.stats = {epoch: stats for epoch, stats in reporter.stats.items() if (folder / f"{epoch}epoch.pth").exists()}
    left.epoch = max(left.stats, default=reporter.epoch)  # of which ESPnet asks what was measured
    return left


def mend_folder(folder: Path, criteria: Criteria) -> None:
    """Makes a folder in which a training was cut off one that ESPnet can go on with; each process of a training calls it.

    Raises:
        UserError: a file cannot be renamed or written.
    """
    if not folder.is_dir():
        return
    try:
        with open(folder / ".mend.lock", "w", encoding="utf-8") as lock:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            _mend(folder, criteria)
    except PermissionError as error:
        raise UserError(f"{error.filename}: cannot be written ({error.strerror}); the training goes on in its folder") from None


def _mend(folder: Path, criteria: Criteria) -> None:
    for path in folder.glob(".*.pth*.tmp"):
        path.unlink()  # of a process that was killed while it wrote
    broken = [path for path in (*_epoch_files(folder), folder / CHECKPOINT, folder / PREVIOUS) if not _is_whole(path)]
    for path in broken:
        _say(f"{path} is cut off or damaged; it is kept as {_set_aside(path, 'broken').name}")
    checkpoint, previous = folder / CHECKPOINT, folder / PREVIOUS
    if not checkpoint.exists() and previous.exists():
        os.replace(previous, checkpoint)
        _say(f"{folder}: the training goes on from the checkpoint of the epoch before ({PREVIOUS})")
    if checkpoint.exists():
        _finish_epoch(checkpoint, criteria)
    elif broken:
        # ESPnet would write over them, one by one; they are all that is left of that training.
        kept = [_set_aside(path, "old").name for path in _epoch_files(folder)]
        note = f"; parameters that are left: {' '.join(kept)} (for --init_param)" if kept else ""
        _say(f"{folder}: no checkpoint is whole, so the training begins again at epoch 1{note}")


def _epoch_files(folder: Path) -> list[Path]:
    names = ((re.fullmatch(r"(\d+)epoch\.pth", path.name), path) for path in folder.glob("*epoch.pth"))
    numbered = {int(name[1]): path for name, path in names if name}
    return [numbered[number] for number in sorted(numbered)]


def _is_whole(path: Path) -> bool:
    """Whether a file of torch's has its end and the checksums that it names; one that is not there is not broken."""
    if not path.exists():
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError):
        return False


def _set_aside(path: Path, suffix: str) -> Path:
    target, number = path.with_name(f"{path.name}.{suffix}"), 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.{suffix}{number}")
    path.rename(target)
    return target


def _finish_epoch(checkpoint: Path, criteria: Criteria) -> None:
    """Does what ESPnet does after it has written the checkpoint, where the process was cut off in between."""
    folder, reporter = checkpoint.parent, Reporter()
    try:
        with torch.serialization.safe_globals(_PLAIN):
            states = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError:
        return  # whole, but not of this ESPnet, which will say so
    reporter.load_state_dict(states["reporter"])
    newest = folder / f"{reporter.get_epoch()}epoch.pth"
    if not newest.exists():
        with whole_files():
            torch.save(states["model"], newest)
    left = _epochs_left(reporter, folder)
    _link(folder / "latest.pth", newest.name)
    for phase, key, mode in criteria:
        if left.has(phase, key):
            _link(folder / f"{phase}.{key}.best.pth", f"{left.get_best_epoch(phase, key, mode)}epoch.pth")


def _link(path: Path, target: str) -> None:
    if path.is_symlink() and os.readlink(path) == target:
        return
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    os.replace(temporary, path)


def _say(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
