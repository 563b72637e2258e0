"""Servers for tests: a free port, and a server that is stopped whatever happens."""

import socket
from contextlib import contextmanager


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def ready(server, *awaited):
    """`server` once `wait(*awaited)` has returned; it is stopped afterwards."""
    try:
        server.wait(*awaited)
        yield server
    finally:
        server.stop()
