"""Batches recognised by several processes, each of which has the model for itself."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import TYPE_CHECKING

from espnet_ee.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from espnet_ee.decode.transcript import Recognise, Recognised

_build: Callable[[], Recognise] | None = None  # of a worker: what makes its recogniser, and what this made
_recognise: Recognise | None = None


class Workers:
    """Processes that recognise batches. All of them are gone after the block, however it ends, and when this process is killed.

    Args:
        build: makes what recognises in a worker; is sent there by name.
        count: processes; as many as are needed are started.

    Raises:
        UserError: at the block's end, if a process was killed.
    """

    def __init__(self, build: Callable[[], Recognise], count: int) -> None:
        # Spawned, not forked: a fork would copy whatever threads and locks torch holds here.
        context = multiprocessing.get_context("spawn")
        alive, self._alive = context.Pipe(duplex=False)  # nothing is sent: a worker ends when the other end is gone
        self._executor = ProcessPoolExecutor(count, context, _start, (build, alive))

    def __enter__(self) -> Workers:
        return self

    def submit(self, batch: Sequence[np.ndarray]) -> Callable[[], list[Recognised]]:
        """Begins a batch; what it gives waits for the end, and raises UserError."""
        # Workers keep it blocked: Ctrl-C is for this process.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            future: Future[list[Recognised] | str] = self._executor.submit(_work, list(batch))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

        def results() -> list[Recognised]:
            recognised = future.result()
            if isinstance(recognised, str):
                raise UserError(recognised)
            return recognised

        return results

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._alive.close()
        self._executor.shutdown(cancel_futures=True)
        if kind is BrokenProcessPool:
            raise UserError("--nj: a process was killed (out of memory?); run again with a smaller number") from None


def _start(build: Callable[[], Recognise], alive: Connection) -> None:
    global _build
    _build = build
    threading.Thread(target=_watch, args=(alive,), daemon=True).start()


def _watch(alive: Connection) -> None:
    with suppress(EOFError, OSError):
        alive.recv_bytes()
    os._exit(1)


def _work(batch: Sequence[np.ndarray]) -> list[Recognised] | str:
    """The results, or what is wrong with the batch."""
    global _recognise
    assert _build is not None
    try:
        if _recognise is None:
            _recognise = _build()
        return _recognise(batch)
    except UserError as error:
        return str(error)
