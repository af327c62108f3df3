"""Settings of the whole suite: one thread, no network."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from _pytest.doctest import DoctestModule

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collect_file() -> Iterator[Any]:
    """No doctests of tests: pytest skips those of a file that cannot be imported, and with them, silently, its tests."""
    collected = yield
    return [collector for collector in collected if not isinstance(collector, DoctestModule)]
