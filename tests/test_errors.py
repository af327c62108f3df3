"""What the user sees of an error."""

from __future__ import annotations

import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from espnet_ee import errors
from espnet_ee.errors import TRACEBACK, UsageError, UserError, run

ROOT = Path(__file__).resolve().parents[1]


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
        (OSError(5, "Input/output error", "/data/x"), "/data/x: Input/output error; check"),
        (OSError(24, "Too many open files", "/data/x"), "/data/x: Too many open files; check"),
        (OSError(40, "Too many levels of symbolic links", "/data/x"), "/data/x: Too many levels of symbolic links; check"),
    ],
)
def test_a_full_or_forbidden_disk_is_one_line(error: OSError, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        run(main)
    said = capsys.readouterr().err
    assert stopped.value.code == 1 and line in said and said.count("\n") == 1


def bad_bytes() -> None:
    raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "the cause")


def as_one_line(chained: bool) -> None:
    try:
        bad_bytes()
    except ValueError as error:
        raise UserError("text:3: not UTF-8") from (error if chained else None)


@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize("asked", ["1", "0", "", None])
def test_the_cause_of_a_line_is_shown_when_asked_for(
    asked: str | None, chained: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(TRACEBACK, raising=False)
    if asked is not None:
        monkeypatch.setenv(TRACEBACK, asked)
    with pytest.raises(SystemExit) as stopped:
        run(lambda: as_one_line(chained))
    *cause, line = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1 and line.endswith("error: text:3: not UTF-8")
    assert any("in bad_bytes" in word for word in cause) == any("the cause" in word for word in cause) == (asked == "1")
    assert bool(cause) == (asked == "1")


def test_the_cause_of_a_full_disk_is_shown_when_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fills_the_disk() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv(TRACEBACK, "1")
    with pytest.raises(SystemExit):
        run(fills_the_disk)
    assert "in fills_the_disk" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("shell", "said"),
    [
        ('exec "$@" <&-', "0 \u00e9\udcff\n"),
        ('exec "$@" 2>&-', "0 \u00e9\udcff\n"),
        ('exec "$@" >&-', ""),
        ('PYTHONIOENCODING=ascii exec "$@"', "0 \u00e9\udcff\n"),
    ],
)
def test_the_standard_streams_are_there_and_take_every_text(shell: str, said: str) -> None:
    program = (
        "from espnet_ee.errors import open_streams\nopen_streams()\nimport sys\n"
        "sys.stderr.isatty()\nprint(len(sys.stdin.buffer.read()), '\\u00e9\\udcff')"
    )
    command = ["sh", "-c", shell, "sh", sys.executable, "-c", program]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout.decode("utf-8", "surrogateescape")) == (0, said)


def test_an_interrupt_ends_the_process_by_the_signal_in_one_line() -> None:
    program = "import os, signal\nfrom espnet_ee.errors import run\nrun(lambda: os.kill(os.getpid(), signal.SIGINT))"
    start = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's job would not listen
    done = subprocess.run([sys.executable, "-c", start + program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == -signal.SIGINT and done.stderr == "-c: interrupted\n"


def test_success_returns() -> None:
    run(lambda: None)


def test_every_extra_that_is_named_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", made.update)
    runpy.run_path(str(Path(__file__).parents[1] / "setup.py"))
    extras = made["extras_require"]
    assert set(errors._EXTRAS.values()) <= set(extras)
    assert {requirement.partition(">")[0] for requirement in made["install_requires"]} == {"numpy", "pyyaml", "soundfile"}
    # What tools/install.sh asks for has all that tests and recipes need.
    assert set(extras["score"]) < set(extras["recipe"])
    assert set(extras["espnet"]) < set(extras["recipe"]) < set(extras["dev"]) > set(extras["onnx"]) > set(extras["runtime"])


def test_a_missing_package_is_one_line_with_its_extra(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise ModuleNotFoundError("No module named 'espnet2.tasks'", name="espnet2.tasks")

    with pytest.raises(SystemExit) as stop:
        errors.run(main)
    line = capsys.readouterr().err
    assert stop.value.code == 1 and "pip install -e '.[espnet]'" in line and line.count("\n") == 1

    def ours() -> None:
        raise ModuleNotFoundError("No module named 'espnet_ee.nothing'", name="espnet_ee.nothing")

    with pytest.raises(ModuleNotFoundError):  # a bug of ours keeps its traceback
        errors.run(ours)
