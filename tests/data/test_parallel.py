"""Results and errors do not depend on the number of processes."""

from __future__ import annotations

import os

import pytest

from espnet_ee.data import parallel
from espnet_ee.data.parallel import ordered_map
from espnet_ee.errors import UsageError, UserError


def square(number: int) -> int:
    return number * number


def fail_from_three(number: int) -> int:
    if number >= 3:
        raise UserError(f"item {number} is broken")
    return number


def die(number: int) -> int:
    os._exit(number)


@pytest.mark.parametrize("nj", [1, 2])
def test_results_are_in_order(nj: int) -> None:
    assert ordered_map(square, range(20), nj, "squares", chunk=3) == [n * n for n in range(20)]


@pytest.mark.parametrize("nj", [1, 2])
def test_first_failing_item_is_reported(nj: int) -> None:
    with pytest.raises(UserError, match="item 3 is broken"):
        ordered_map(fail_from_three, range(20), nj, "items", chunk=2)


def test_killed_process_is_a_user_error() -> None:
    with pytest.raises(UserError, match="deaths: a process was killed .* smaller --nj"):
        ordered_map(die, [9, 9], 2, "deaths")


def test_nothing_to_do() -> None:
    assert ordered_map(square, [], 2, "squares") == []


def test_no_processes_are_refused() -> None:
    with pytest.raises(UsageError, match="--nj"):
        ordered_map(square, [1], 0, "squares")


def test_progress_tells_how_far(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(parallel, "PROGRESS_SECONDS", 0.0)
    ordered_map(square, range(2), 1, "squares set")
    assert capsys.readouterr().err == "squares set: 1/2\nsquares set: 2/2\n"
