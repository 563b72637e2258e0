"""HumanEval programs, run where they can do no harm and cannot vouch for themselves. docs/sandbox.md explains how."""

import functools
import marshal
import os
import secrets
import select
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from eval.sandbox import isolation

HARNESS = Path(__file__).with_name("harness.py").read_text(encoding="utf-8")
STARTUP_S = 30.0  # for the sandbox and the interpreter on a busy machine; not part of a program's time
GRACE_S = 1.0  # the program's own timer may be ignored; this long after it, everything is killed
ANSWER_BYTES = 4096


@dataclass(frozen=True)
class Verdict:
    """`passed`: the program ran to its end. `status`: "passed", "timed out", "failed: why" or "killed: why"."""

    passed: bool
    status: str


@dataclass(frozen=True)
class Protection:
    """`way`: "bubblewrap", "namespaces" or "none"; `text`: one line that says what holds, or why nothing does."""

    way: str
    text: str

    def __str__(self) -> str:
        return self.text


class SandboxError(RuntimeError):
    """The sandbox did not start; says nothing about the program."""


def limits(timeout_s: float) -> dict[str, int]:
    """Hard limits of each process of a program, by the names of Python's `resource`."""
    return {
        "RLIMIT_AS": 2**30,
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": int(timeout_s + GRACE_S) + 1,
        "RLIMIT_FSIZE": 16 * 2**20,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_NPROC": 8,
    }


def check_humaneval(
    problem: dict, completion: str, timeout_s: float = 3.0, *, allow_unprotected: bool = False
) -> Verdict:
    """Run `{prompt}{completion}\\n{test}\\ncheck({entry_point})` of one HumanEval row (protocol, section d).

    Passed only if the program reaches its end within `timeout_s` seconds. Raises PermissionError where nothing can
    shut the program in and `allow_unprotected` is not set, SandboxError where the sandbox does not start.
    """
    active = protection()
    if active.way == "none" and not allow_unprotected:
        raise PermissionError(
            f"{active.text}. Pass allow_unprotected=True to run the programs of a model all the same."
        )
    program = f"{problem['prompt']}{completion}\n{problem['test']}\ncheck({problem['entry_point']})"
    return run(active.way, program, timeout_s)


@functools.cache
def protection() -> Protection:
    """The strongest way to shut a program in that works here, tried out once per process."""
    reasons = []
    for way in ("bubblewrap", "namespaces"):
        try:
            run(way, "", timeout_s=10.0)
        except (SandboxError, OSError) as error:
            reasons.append(f"{way}: {error}")
        else:
            return Protection(way, f"HumanEval programs are shut in by {way}")
    return Protection("none", f"nothing here can shut a program in ({'; '.join(reasons)})")


def run(way: str, program: str, timeout_s: float) -> Verdict:
    """Run one program by `way` (a key of `isolation.WAYS`)."""
    secret = secrets.token_bytes(32)
    job = {
        "program": program,
        "secret": secret,
        "timeout_s": timeout_s,
        "limits": limits(timeout_s),
        "packages": [isolation.PACKAGES_INSIDE] if way != "none" else [],
    }
    command = [*isolation.command(way), isolation.interpreter(), "-I", "-S", "-X", "utf8", "-c", HARNESS]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=isolation.ENVIRONMENT,
        cwd="/",
        start_new_session=True,
    )
    with process:
        try:
            return verdict(process, marshal.dumps(job), secret, timeout_s)
        finally:
            process.kill()


def verdict(process: subprocess.Popen, job: bytes, secret: bytes, timeout_s: float) -> Verdict:
    """Hand the job over, and judge the program by what comes back and when."""
    assert process.stdin and process.stdout and process.stderr
    try:
        process.stdin.write(job)
        process.stdin.close()
    except BrokenPipeError:
        pass
    channel = process.stdout.fileno()
    if read(channel, 1, time.monotonic() + STARTUP_S)[0] != b"+":
        process.kill()
        raise SandboxError(process.stderr.read().decode(errors="replace").strip() or "it does not start")
    answer, ended = read(channel, ANSWER_BYTES, time.monotonic() + timeout_s + GRACE_S)
    if answer == secret:
        return Verdict(True, "passed")
    if not ended or answer.startswith(b"TimeoutError"):
        return Verdict(False, "timed out")
    text = answer.decode(errors="replace") or f"the program left before its end (code {process.wait()})"
    return Verdict(False, f"failed: {text}")


def read(channel: int, size: int, deadline: float) -> tuple[bytes, bool]:
    """At most `size` bytes until the end of the stream or the deadline; and whether the stream ended or was full."""
    data = b""
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    while len(data) < size:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return data, False
        chunk = os.read(channel, size - len(data))
        if not chunk:
            break
        data += chunk
    return data, True
