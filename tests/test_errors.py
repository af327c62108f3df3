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


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "/data/x"), "/data/x: Permission denied; check"),
        (OSError(28, "No space left on device"), "error: No space left on device; check"),
        (OSError(27, "File too large", "/data/x"), "/data/x: File too large; check"),
        (OSError(36, "File name too long", "/data/x"), "/data/x: File name too long; check"),
        (NotADirectoryError(20, "Not a directory", "/data/x"), "/data/x: Not a directory; check"),
    ],
)
def test_a_full_or_forbidden_disk_is_one_line(error: OSError, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        run(main)
    said = capsys.readouterr().err
    assert stopped.value.code == 1 and line in said and said.count("\n") == 1


def test_bug_keeps_its_traceback() -> None:
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(main)


def test_an_unexpected_system_error_keeps_its_traceback() -> None:
    def main() -> None:
        raise FileNotFoundError(2, "No such file", "x")

    with pytest.raises(FileNotFoundError):
        run(main)


def test_success_returns() -> None:
    run(lambda: None)
