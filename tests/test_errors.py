"""What the user sees of an error."""

from __future__ import annotations

import pytest

from espnet_ee.errors import UsageError, UserError, run


@pytest.mark.parametrize(("error", "status"), [(UserError("a\n b"), 1), (UsageError("a\n b"), 2)])
def test_error_is_one_line_and_an_exit_status(
    error: UserError, status: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/command.py"])

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        run(main)
    assert stopped.value.code == status
    assert capsys.readouterr().err == "command: error: a b\n"


def test_bug_keeps_its_traceback() -> None:
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(main)


def test_success_returns() -> None:
    run(lambda: None)
