"""An interpreter whose imports are done: a server that has imported ESPnet forks a child for each command.

    tools/forking_python.py serve SOCKET &        # then, as the interpreter of a recipe (--python):
    tools/forking_python.py client SOCKET WORD... # what python WORD... does, without its seconds of imports

The real programs run, from their first line. A client that is killed takes its child with it, and a child holds what the
client had open (a recipe's locks). For :mod:`tools.soak`, which starts thousands of commands.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MAX_FILES = 64


def client(path: str, words: list[str]) -> int:
    """Has a command run by the server; gives its exit status."""
    fds = [0, 1, 2, *sorted(fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2)]
    fds = [fd for fd in fds if _is_open(fd)][:MAX_FILES]
    request = json.dumps({"words": words, "cwd": os.getcwd(), "env": dict(os.environ)}).encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(path)
        connection.sendmsg([len(request).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
        connection.sendall(request)
        status = connection.recv(1)
    return status[0] if status else 137


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def interpreter(folder: Path) -> Iterator[Path]:
    """Yields a program that takes the words of python; its server ends with the block."""
    address = folder / "socket"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, __file__, "serve", str(address)], env=environment, stderr=subprocess.DEVNULL)
    program = folder / "python3"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "{__file__}" client "{address}" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    try:
        while not address.exists():
            if process.poll() is not None:
                raise RuntimeError("the server of forking_python.py has ended")
            time.sleep(0.1)
        yield program
    finally:
        process.kill()
        process.wait()


def serve(path: str) -> None:
    """Imports what the commands need, then forks a child for each of them, until it is killed."""
    import_all()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(64)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _child(connection)
        connection.close()


def import_all() -> None:
    """What takes seconds: the modules of the commands, none of which does anything by being imported."""
    import espnet2.bin.aggregate_stats_dirs
    import espnet2.bin.asr_train  # noqa: F401
    import matplotlib.pyplot  # noqa: F401

    import espnet_ee.api
    import espnet_ee.cli.main
    import espnet_ee.data.draft
    import espnet_ee.data.prepare
    import espnet_ee.decode.selection
    import espnet_ee.plugin.task
    import espnet_ee.score.experiment
    import espnet_ee.store.package  # noqa: F401


def _child(connection: socket.socket) -> None:
    status = 1
    try:
        head, ancillary, _, _ = connection.recvmsg(4, socket.CMSG_LEN(MAX_FILES * 4))
        received = array.array("i")
        for _, _, content in ancillary:
            received.frombytes(content[: len(content) - len(content) % received.itemsize])
        for target, fd in enumerate(received[:3]):
            os.dup2(fd, target)
            os.close(fd)
        request = json.loads(_receive(connection, int.from_bytes(head, "big")))
        os.setpgid(0, 0)
        threading.Thread(target=_die_with, args=(connection,), daemon=True).start()
        status = _run(request)
    finally:
        with contextlib.suppress(OSError):
            connection.sendall(bytes([status & 255]))
        os._exit(status & 255)


def _receive(connection: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        block = connection.recv(size - len(content))
        if not block:
            raise EOFError("the client was killed while it asked")
        content += block
    return content


def _die_with(connection: socket.socket) -> None:
    """Waits for the client's end, which is that of this process and of those that it has started."""
    with contextlib.suppress(OSError):
        connection.recv(1)
    os.killpg(0, signal.SIGKILL)


def _run(request: dict[str, object]) -> int:
    import runpy
    import traceback

    words, environment = list(request["words"]), dict(request["env"])  # type: ignore[call-overload]
    os.chdir(str(request["cwd"]))
    os.environ.clear()
    os.environ.update(environment)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), encoding="utf-8", write_through=True)
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), encoding="utf-8", write_through=True)
    status = 0
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})  # the recipe's own line
        else:
            sys.argv = words
            sys.path.insert(0, os.path.dirname(words[0]))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as leaving:
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return status


def main() -> None:
    """See the head of this file."""
    role, path, *words = sys.argv[1:]
    if role == "serve":
        serve(path)
    sys.exit(client(path, words))


if __name__ == "__main__":
    main()
