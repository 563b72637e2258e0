"""The program that runs inside the sandbox: `python -I -S -c <this text>`, in an interpreter of its own.

It reads one job from stdin, runs it, and answers on what was stdout: first a `+`, then the job's secret if and only if
the untrusted program ran to its end, else one line that says why not. The evaluator never imports it.
"""

import _posixsubprocess
import _signal
import builtins
import marshal
import os
import resource
import sys
from _collections_abc import Callable, Iterable
from _functools import partial
from _operator import call

# What the original evaluation takes away from the program too (the "reliability guard" of OpenAI's human-eval).
DISABLED = (
    *("kill", "killpg", "system", "fork", "forkpty", "setuid", "chroot", "putenv", "getcwd", "chdir", "fchdir"),
    *("remove", "removedirs", "rmdir", "unlink", "rename", "renames", "replace", "truncate"),
    *("chmod", "fchmod", "lchmod", "chown", "fchown", "lchown", "lchflags"),
)
HIDDEN_MODULES = ("ipdb", "joblib", "resource", "psutil", "tkinter")


def close_standard_streams() -> None:
    """Make stdin unreadable, and lead stdout and stderr nowhere."""
    null = os.open("/dev/null", os.O_WRONLY)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def veto(event: str, args: tuple[str, ...], rpartition: Callable[..., tuple[str, ...]] = str.rpartition) -> None:
    """Audit hook: refuse what reaches into other objects, past the program's own frames, or to a second process.

    No program that solves a task needs these; docs/sandbox.md names the attack that each would open. It decides by
    constants and defaults only, because through the traceback a refused program can reach this function's globals.
    """
    if event.startswith(
        ("ctypes.", "gc.get_", "os.exec", "os.fork", "os.posix_spawn", "os.system", "sys._current_", "sys.monitoring.")
    ) or event in ("sys.settrace", "sys.setprofile"):
        raise RuntimeError(event + " is not allowed in the sandbox")
    if event == "import" and rpartition(args[0], ".")[2] in (
        *("_ctypes", "_posixsubprocess", "_testcapi", "_testinternalcapi", "_xxsubinterpreters", "_interpreters"),
    ):
        raise ImportError("this module is not available in the sandbox")


def on_alarm(signum: int, frame: object) -> None:
    raise TimeoutError


def confine(limits: dict[str, int]) -> None:
    """Set limits ({name in `resource`: value}) that cannot be raised again, and forbid what `veto` forbids."""
    for name, value in limits.items():
        limit = getattr(resource, name)
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    sys.addaudithook(veto)


def take_away() -> None:
    """Remove the calls and modules that the original evaluation removes, and the way to start a process unnoticed."""
    vars(_posixsubprocess)["fork_exec"] = None
    vars(os).update(dict.fromkeys(DISABLED))
    vars(builtins).update(dict.fromkeys(("exit", "quit", "help")))
    vars(sys)["modules"].update(dict.fromkeys(HIDDEN_MODULES))


def steps(channel: int) -> Iterable[Callable[[], object]]:
    """What happens, in order: run the program, hand in the secret, leave.

    The three calls are made by C code and held by the C stack alone: no Python frame, closure or module leads from the
    program to the secret, and `os.write` and `os._exit` are bound before the program can replace them.
    """
    with open(0, "rb", closefd=False) as stdin:
        program, secret, timeout_s, limits, packages = marshal.loads(stdin.read())
    write, leave = os.write, os._exit
    close_standard_streams()
    confine(limits)
    sys.path += packages
    if packages and "numpy" in program:  # it does not load any more once the calls are taken away
        __import__("numpy")
    take_away()
    write(channel, b"+")
    _signal.signal(_signal.SIGALRM, on_alarm)
    _signal.setitimer(_signal.ITIMER_REAL, timeout_s)
    code = compile(program, "<program>", "exec")
    return partial(exec, code, {}), partial(write, channel, secret), partial(leave, 0)


channel = os.dup(1)
try:
    list(map(call, steps(channel)))
except BaseException as error:
    os.write(channel, f"{type(error).__name__}: {error}".encode()[:200])
os._exit(1)
