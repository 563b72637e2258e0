"""Processes of tests: each has a group of its own, which ends as a whole, whatever happens to the test."""

import os
import signal
import socket
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from typing import Any


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


def run(command: list[str], seconds: float, **options: Any) -> tuple[int, str]:
    """The return code and the output of a group of processes: vLLM's workers do not outlive the first one.

    The output is a file, since a pipe would be waited for as long as a worker holds it. Raises TimeoutExpired.
    """
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, **options)
        try:
            code = process.wait(seconds)
        finally:
            signal_group(process, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return code, output.read().decode(errors="replace")


def signal_group(process: subprocess.Popen[Any], number: signal.Signals) -> None:
    """Signal all processes of the session that `process` was started in; those that have ended are no error."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def end_group(process: subprocess.Popen[Any], seconds: float) -> None:
    """SIGTERM, and SIGKILL for what is left after so many seconds."""
    signal_group(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    signal_group(process, signal.SIGKILL)


def interrupt_on_sigterm() -> None:
    """Let SIGTERM unwind this process as Ctrl-C does, so that `finally` ends what it started."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
