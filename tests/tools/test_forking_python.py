"""The server whose forks are the soak's interpreters."""

from __future__ import annotations

import socket

import pytest

from tools.forking_python import _receive


def test_a_client_that_is_killed_while_it_asks_keeps_no_child_busy() -> None:
    client, server = socket.socketpair()
    client.sendall(b"{")
    assert _receive(server, 1) == b"{"
    client.sendall(b'"words"')
    client.close()
    with server, pytest.raises(EOFError):
        _receive(server, 100)
