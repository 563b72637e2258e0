"""Programs that a check starts: they end with it, and what they leave running is found and ended."""

import os
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO

from scripts.cell.process import die_with_parent

ROOT = Path(__file__).resolve().parents[2]
GRACE = 5.0  # seconds in which the processes of a program may end after it
DEATH = 5.0  # seconds in which a killed process is gone: the system ends it later than it takes the signal
ENVIRONMENT = {"WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}


@contextmanager
def started(command: Sequence[str], out: IO[str], err: IO[str]) -> Iterator["subprocess.Popen[str]"]:
    """A program in a session of its own; in the end it is killed, if it has not ended, and so is what it started.

    out, err: files for what it prints. Pipes would stay open as long as anything that it started.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        stdout=out,
        stderr=err,
        encoding="utf-8",
        start_new_session=True,
        preexec_fn=partial(die_with_parent, os.getpid()),
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pid in left_behind(process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        still_running(process.pid, DEATH)


def finished(command: Sequence[str], patience: float) -> str:
    """Run a program to its end; returns the last line that it printed.

    Raises ValueError if it fails, if it has not ended after `patience` seconds, or if processes of it live on.
    """
    with printed() as out, printed() as err, started(command, out, err) as process:
        try:
            code = process.wait(patience)
        except subprocess.TimeoutExpired:
            raise ValueError(f"it has not ended after {patience:.0f} s; run {_shown(command)} to see why.") from None
        if code != 0:
            raise ValueError(f"it failed: {last_line(err) or code} ({_shown(command)} shows all).")
        if orphans := still_running(process.pid, GRACE):
            names = ", ".join(f"process {pid} ({name})" for pid, name in orphans.items())
            raise ValueError(f"it left {names} running, which was ended now; report this with the versions above.")
        return last_line(out)


def still_running(session: int, patience: float) -> Mapping[int, str]:
    """The processes of a session that do not end within `patience` seconds: their names by their ids."""
    end = time.monotonic() + patience
    while (found := left_behind(session)) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def left_behind(session: int) -> dict[int, str]:
    """The living processes of a session, by id (Linux; elsewhere none is found)."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            name, _, rest = stat.read_text(encoding="utf-8", errors="replace").partition(" (")[2].rpartition(") ")
            state, _, _, own = rest.split()[:4]  # state, parent, group, session (proc(5))
            if int(own) == session and state != "Z":
                found[int(stat.parent.name)] = name
    return found


def printed() -> IO[str]:
    """A file for what a program prints; it goes when it is closed."""
    return tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")


def last_line(file: IO[str]) -> str:
    """The last line of a file that is not blank, or nothing."""
    file.seek(0)
    lines = [line for line in file if line.strip()]
    return lines[-1].strip() if lines else ""


def _shown(command: Sequence[str]) -> str:
    return shlex.join(["python", *command[1:]])
