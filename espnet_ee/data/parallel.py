"""One function over many items on several processes, with results that do not depend on how many."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from espnet_ee.errors import UsageError, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

PROGRESS_SECONDS = 5.0


def ordered_map(function: Callable[[Item], Result], items: Sequence[Item], nj: int, label: str, chunk: int = 8) -> list[Result]:
    """Applies ``function`` to every item; the results stand in the items' order.

    Args:
        function: a module-level function (it is sent to other processes by name).
        items: what it is applied to.
        nj: number of processes; 1 stays in this one.
        label: what the progress line (stderr, every few seconds) calls the work.
        chunk: items sent to a process at a time.

    Raises:
        UsageError: ``nj`` is below 1.
        UserError: what ``function`` raised for the first failing item, in the items' order.
    """
    if nj < 1:
        raise UsageError(f"--nj: {nj} processes are not possible; give 1 or more")
    if nj == 1 or len(items) <= 1:
        return list(_with_progress(map(function, items), len(items), label))
    # Spawned, not forked: a fork would copy whatever threads and locks numpy or torch hold here.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(nj, len(items)), mp_context=context) as executor:
        try:
            return list(_with_progress(executor.map(function, items, chunksize=chunk), len(items), label))
        except BrokenProcessPool:
            raise UserError(f"{label}: a process was killed (out of memory?); run again with a smaller --nj") from None
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _with_progress(results: Iterator[Result], total: int, label: str) -> Iterator[Result]:
    last = time.monotonic()
    for done, result in enumerate(results, 1):
        yield result
        if time.monotonic() - last >= PROGRESS_SECONDS:
            last = time.monotonic()
            print(f"{label}: {done}/{total}", file=sys.stderr, flush=True)
