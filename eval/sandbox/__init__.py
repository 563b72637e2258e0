"""Programs that a model wrote, run where they can do no harm and cannot vouch for themselves (docs/sandbox.md)."""

import functools
import marshal
import os
import secrets
import select
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from eval.sandbox import isolation

CHILD = Path(__file__).with_name("child.py").read_text(encoding="utf-8")
STARTUP_S = 30.0  # for the sandbox and the interpreter on a busy machine; it does not count as the program's time
GRACE_S = 1.0  # a program can ignore its timer; this much later everything is killed
ANSWER_BYTES = 4096


@dataclass(frozen=True)
class Outcome:
    """`passed`: the program ran to its end. `status`: "passed", "timed out" or "failed: " and the reason."""

    passed: bool
    status: str


@dataclass(frozen=True)
class Protection:
    """`way`: "bubblewrap", "namespaces" or "none"; `text`: one line for a log, what protects or why nothing does."""

    way: str
    text: str

    def __str__(self) -> str:
        return self.text


class SandboxError(OSError):
    """The sandbox did not start; this says nothing about the program."""


def check(program: str, timeout_s: float = 3.0, *, allow_unprotected: bool = False) -> Outcome:
    """Run one Python program.

    It passes only if it reaches its end. A timer stops it after `timeout_s` seconds, a kill one second later.
    Raises ValueError for a time that is not positive, PermissionError as `require_protection`, SandboxError where the
    sandbox does not start.
    """
    if not timeout_s > 0:
        raise ValueError(f"timeout_s={timeout_s} would never stop a program; give a positive number of seconds")
    return run(require_protection(allow_unprotected).way, program, timeout_s)


def require_protection(allow_unprotected: bool = False, key: str = "allow_unprotected") -> Protection:
    """The active protection. Raises PermissionError, which names `key`, if there is none and it need not be there."""
    active = protection()
    if active.way == "none" and not allow_unprotected:
        raise PermissionError(f"{active}; to run a model's programs all the same, set {key}=true")
    return active


@functools.cache
def protection() -> Protection:
    """The best protection that works here. Each way is tried once per process, with an empty program."""
    reasons = []
    for way in ("bubblewrap", "namespaces"):
        try:
            run(way, "", timeout_s=10.0)
        except OSError as error:
            reasons.append(f"{way}: {error}")
        else:
            return Protection(way, describe(way))
    return Protection("none", f"nothing here can shut a program in ({'; '.join(reasons)})")


def describe(way: str) -> str:
    """One line on what a program finds in the sandbox."""
    bounds = limits(0)
    return (
        f"A model's programs are shut in by {way}: user nobody, no network, no other processes, no files but a private "
        f"/tmp of {isolation.TMP_BYTES >> 20} MiB and Python's own (read-only), at most {bounds['RLIMIT_NPROC']} "
        f"processes of {bounds['RLIMIT_AS'] >> 20} MiB, killed {GRACE_S:g} s after their time"
    )


def limits(timeout_s: float) -> dict[str, int]:
    """Hard limits of each process of a program, by their names in Python's `resource`; bytes, seconds, counts."""
    return {
        "RLIMIT_AS": 2**30,
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": int(timeout_s + GRACE_S) + 1,
        "RLIMIT_FSIZE": isolation.TMP_BYTES,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_NPROC": 8,
    }


def run(way: str, program: str, timeout_s: float) -> Outcome:
    """Run one program by `way` (a key of `isolation.WAYS`)."""
    secret = secrets.token_bytes(32)
    job = (program, secret, timeout_s, limits(timeout_s), isolation.import_path(way))
    with tempfile.TemporaryFile() as stdin:
        stdin.write(marshal.dumps(job))
        stdin.seek(0)
        with start(way, stdin) as process:
            try:
                return judge(process, secret, timeout_s)
            finally:
                process.kill()


def start(way: str, stdin: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start the child inside the sandbox; `stdin` holds its job."""
    return subprocess.Popen(
        [*isolation.command(way), isolation.interpreter(), "-I", "-S", "-X", "utf8", "-c", CHILD],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=isolation.ENVIRONMENT,
        cwd=tempfile.gettempdir() if way == "none" else "/",
        start_new_session=True,
    )


def judge(process: subprocess.Popen[bytes], secret: bytes, timeout_s: float) -> Outcome:
    """Judge a program by what comes out of the sandbox, and when."""
    assert process.stdout and process.stderr
    channel = process.stdout.fileno()
    first, _ = read(channel, 1, time.monotonic() + STARTUP_S)
    deadline = time.monotonic() + timeout_s + GRACE_S
    if first != b"+":
        process.kill()
        reason = process.stderr.read() or first + process.stdout.read()
        raise SandboxError(
            f"the sandbox does not start: {reason.decode(errors='replace').strip() or 'no reason given'}"
        )
    answer, ended = read(channel, ANSWER_BYTES, deadline)
    if answer == secret:
        return Outcome(True, "passed")
    if not ended or answer.startswith(b"TimeoutError"):
        return Outcome(False, "timed out")
    text = "".join(c if c.isprintable() else "?" for c in answer[:200].decode(errors="replace"))
    return Outcome(False, f"failed: {text or farewell(process, deadline)}")


def read(channel: int, size: int, deadline: float) -> tuple[bytes, bool]:
    """At most `size` bytes, read until the stream ends or the deadline comes; and False if the deadline came."""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    data = b""
    while len(data) < size:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return data, False
        chunk = os.read(channel, size - len(data))
        if not chunk:
            break
        data += chunk
    return data, True


def farewell(process: subprocess.Popen[bytes], deadline: float) -> str:
    """How a program ended that wrote nothing. It may still run: a program can close its output."""
    try:
        code = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return "still running without a word when its time was over"
    return f"left before its end, with code {code}"
