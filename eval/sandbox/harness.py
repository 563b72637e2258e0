"""The program that runs inside the sandbox: `python -I -S -c <this text>`, in an interpreter of its own.

It reads one job from stdin, runs it, and answers on what was stdout: first `STARTED`, then the job's secret if and only
if the untrusted program ran to its end, else one line that says why not. The evaluator never imports it.
"""

import _signal
import builtins
import marshal
import os
import resource
import sys
from _functools import partial
from _operator import call

import _posixsubprocess

STARTED = b"+"
# Calls that the original evaluation takes away from the program too (the "reliability guard" of OpenAI's human-eval).
DISABLED = (
    "kill system putenv remove removedirs rmdir fchdir setuid fork forkpty killpg rename renames truncate replace unlink "
    "fchmod fchown chmod chown chroot lchflags lchmod lchown getcwd chdir"
).split()
HIDDEN_MODULES = ("ipdb", "joblib", "resource", "psutil", "tkinter")


def read_job() -> dict:
    """The evaluator's job: program, secret, timeout_s, limits ({resource name: value}), packages (folders)."""
    with open(0, "rb", closefd=False) as stream:
        return marshal.loads(stream.read())


def close_standard_streams() -> None:
    """Make stdin unreadable, and lead stdout and stderr nowhere."""
    null = os.open("/dev/null", os.O_WRONLY)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def veto(event: str, args: tuple) -> None:
    """Audit hook: refuse what reaches into other objects, past the program's own frames, or to a second process.

    No program that solves a task needs these; docs/sandbox.md names the attack that each would open. The rules are
    constants of the code, because a refused program can reach this function's globals through the traceback.
    """
    if event.startswith(
        ("ctypes.", "gc.get_", "os.exec", "os.fork", "os.posix_spawn", "os.system", "sys._current_")
    ) or (
        event in ("sys.settrace", "sys.setprofile", "sys.monitoring.register_callback", "_posixsubprocess.fork_exec")
    ):
        raise RuntimeError(event + " is not allowed in the sandbox")
    if event == "import" and args[0] in (
        "_ctypes",
        "_interpreters",
        "_posixsubprocess",
        "_testcapi",
        "_testinternalcapi",
        "_xxsubinterpreters",
    ):
        raise ImportError(args[0] + " is not available in the sandbox")


def on_alarm(signum: int, frame: object) -> None:
    raise TimeoutError


def confine(job: dict) -> None:
    """Limits that cannot be raised again, and the Python-level guard."""
    for name, value in job["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    sys.path += job["packages"]
    if job["packages"] and "numpy" in job["program"]:  # numpy cannot be loaded any more when the guard is up
        __import__("numpy")
    _posixsubprocess.fork_exec = None
    for name in DISABLED:
        setattr(os, name, None)
    for name in ("exit", "quit", "help"):
        setattr(builtins, name, None)
    sys.modules.update(dict.fromkeys(HIDDEN_MODULES))


def steps(channel: int) -> tuple:
    """What happens, in order: run the program, hand in the secret, leave.

    The three calls are made by C code, and only the C stack holds them: no Python frame, closure or module leads
    from the program to the secret, and `os.write` and `os._exit` are bound before the program can replace them.
    """
    job = read_job()
    close_standard_streams()
    write, leave = os.write, os._exit
    confine(job)
    sys.addaudithook(veto)
    write(channel, STARTED)
    _signal.signal(_signal.SIGALRM, on_alarm)
    _signal.setitimer(_signal.ITIMER_REAL, job["timeout_s"])
    code = compile(job["program"], "<program>", "exec")
    return partial(exec, code, {}), partial(write, channel, job["secret"]), partial(leave, 0)


channel = os.dup(1)
try:
    list(map(call, steps(channel)))
except BaseException as error:
    os.write(channel, f"{type(error).__name__}: {error}".encode()[:200])
os._exit(1)
