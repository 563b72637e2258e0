"""Hostile programs against the sandbox: none passes, none harms, and the evaluator goes on.

An *intrusion* defines `attack()`, which returns something true only if it got what it was after; the function under
test is right only then. So "not passed" says that the attack failed, and not merely that the program was no solution.
They run twice: as they are, and with the guard inside the interpreter removed, so that what is tested is the
kernel's part alone. A *forgery* is no solution either, and tries to be taken for one.
"""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

from eval import sandbox
from eval.sandbox import isolation

REPO = Path(__file__).resolve().parents[2]
PROBLEM = {
    "prompt": 'def double(x):\n    """Return twice x."""\n',
    "entry_point": "double",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n",
}
RIGHT = "    return 2 * x\n"
TIMEOUT_S, GRACE_S = 0.5, 0.3

# $CANARY: a file outside that everybody may read and write; $FOLDER: its folder; $REPO: this repository;
# $PID: the evaluator's process; $PORT: a port it listens on; $SOCKET: the abstract name of a socket it listens on
INTRUSIONS = {
    # files
    "read a file outside": "return open('$CANARY').read()",
    "read the home folder": "import os; return os.listdir(os.path.expanduser('~root')) or os.listdir('/home')",
    "list the repository": "import os; return os.listdir('$REPO')",
    "read the password file": "return open('/etc/passwd').read()",
    "write outside": "return open('$FOLDER/new', 'w').write('x')",
    "append to a file outside": "return open('$CANARY', 'a').write('x')",
    "delete a file outside": "import posix; posix.unlink('$CANARY'); return True",
    "rename a file outside": "import posix; posix.rename('$CANARY', '$CANARY.old'); return True",
    "chmod a file outside": "import posix; posix.chmod('$CANARY', 0); return True",
    "symlink to a file outside": "import os; os.symlink('$CANARY', '/tmp/link'); return open('/tmp/link').read()",
    "hard link to a file outside": "import os; os.link('$CANARY', '/tmp/link'); return open('/tmp/link').read()",
    "climb with dots": "return open('/tmp/' + '../' * 20 + '$CANARY'[1:]).read()",
    "climb through a folder's descriptor": """
        import os
        root = os.open('/', os.O_RDONLY)
        return os.open('../../..$CANARY', os.O_RDONLY, dir_fd=root)
    """,
    "leave by chroot": """
        import os, posix
        os.mkdir('/tmp/jail')
        root = os.open('/', os.O_RDONLY)
        posix.chroot('/tmp/jail')
        posix.fchdir(root)
        return True
    """,
    "change the standard library": "import os; return open(os.__file__, 'a').write('x')",
    "change the interpreter": "import sys; return open(sys.executable, 'ab').write(b'x')",
    "change the system's libraries": "return open('/usr/lib/new', 'w').write('x')",
    "write to the root folder": "return open('/new', 'w').write('x')",
    "make a device": "import posix; posix.mknod('/tmp/disk', 0o60666, posix.makedev(254, 0)); return True",
    "open a device": """
        import os
        return [os.open(path, os.O_RDWR) for path in ('/dev/mem', '/dev/vda', '/dev/sda', '/dev/tty', '/dev/kmsg')]
    """,
    "read stdin": "return input() or True",
    "read stdin's descriptor": "import os; os.read(0, 1); return True",
    "read inherited descriptors": """
        import os
        for fd in range(256):
            try:
                os.read(fd, 1)
            except OSError:
                continue
            return True
    """,
    "read the environment": "import os; return os.environ.get('SANDBOX_CANARY')",
    # the network
    "connect to the evaluator": "import socket; return socket.create_connection(('127.0.0.1', $PORT))",
    "connect to an abstract socket": """
        import socket
        s = socket.socket(socket.AF_UNIX)
        s.connect('\\0$SOCKET')
        return True
    """,
    "connect to the internet": "import socket; return socket.create_connection(('1.1.1.1', 53), timeout=1)",
    "resolve a name": "import socket; return socket.getaddrinfo('example.org', 80)",
    "send a datagram": "import socket; return socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53))",
    "see network cards": "import socket; return len(socket.if_nameindex()) > 1",
    "open a raw socket": "import socket; return socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    # other processes
    "list processes": "import os; return os.listdir('/proc')",
    "read the evaluator's memory": "return open('/proc/$PID/mem', 'rb')",
    "read the evaluator's environment": "return open('/proc/$PID/environ', 'rb').read()",
    "read the own memory": "return open('/proc/self/mem', 'rb')",
    "kill the evaluator": "import posix; posix.kill($PID, 9); return True",
    "kill the evaluator's group": "import posix; posix.killpg(posix.getpgid($PID), 9); return True",
    "kill the parent": "import posix; posix.kill(posix.getppid(), 9); return posix.getppid() not in (0, 1)",
    "kill everything": "import posix; posix.kill(-1, 9); return True",
    "see the evaluator": "import os; os.sched_getscheduler($PID); return True",
    "raise the priority": "import os; os.nice(-5); return True",
    "run a shell": "import posix; posix.execv('/bin/sh', ['sh', '-c', 'echo'])",
    "run a shell by subprocess": "import subprocess; return subprocess.run('true', shell=True).returncode == 0",
    "run a shell by popen": "import os; return os.popen('id').read()",
    "spawn a shell": "import os; return os.posix_spawn('/bin/sh', ['sh', '-c', 'sleep 60'], {})",
    "become root": "import posix; posix.setuid(0); return True",
    "change groups": "import os; os.setgroups([0]); return True",
    "mount": "import ctypes; return ctypes.CDLL(None).mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0",
    "new user namespace": "import ctypes; return ctypes.CDLL(None).unshare(0x10000000) == 0",
    "trace the evaluator": "import ctypes; return ctypes.CDLL(None).ptrace(16, $PID, 0, 0) == 0",
    "system V shared memory": "import ctypes; return ctypes.CDLL(None).shmget(0, 1 << 30, 0o1666) >= 0",
    "set the clock": "import time; time.clock_settime(time.CLOCK_REALTIME, 0); return True",
    "rename the machine": "import socket; socket.sethostname('x'); return True",
    # resources
    "memory bomb": "block = bytearray(3 << 29); return len(block)",
    "memory bomb in small pieces": """
        pieces = []
        for _ in range(20):
            pieces.append(b'x' * (1 << 26))
        return True
    """,
    "shared memory bomb": """
        import mmap
        blocks = [mmap.mmap(-1, 1 << 28) for _ in range(6)]
        for block in blocks:
            block[::4096] = b'x' * (1 << 16)
        return True
    """,
    "memory file": "import os; return os.write(os.memfd_create('m'), b'x' * (17 << 20)) > 16 << 20",
    "fill /dev/shm": "return open('/dev/shm/x', 'wb').write(b'x' * (1 << 20))",
    "posix shared memory": """
        from multiprocessing import shared_memory
        return shared_memory.SharedMemory(create=True, size=1 << 20)
    """,
    "disk filler": """
        for number in range(64):
            with open(f'/tmp/{number}', 'wb') as file:
                file.write(b'x' * (1 << 20))
        return True
    """,
    "one large file": "return open('/tmp/large', 'wb').truncate(1 << 40)",
    "fork bomb": """
        import posix, time
        children = 0
        for _ in range(100):
            if posix.fork() == 0:
                time.sleep(5)
                posix._exit(0)
            children += 1
        return True
    """,
    "exponential fork bomb": """
        import posix
        while True:
            posix.fork()
    """,
    "thread bomb": """
        import threading, time
        for _ in range(100):
            threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
        return True
    """,
    "descriptor bomb": "import os; return [os.dup(1) for _ in range(100)]",
    "raise the limits": """
        import sys
        sys.modules.pop('resource', None)
        import resource
        for limit in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU):
            resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        return True
    """,
    # a second life
    "daemon": """
        import posix, time
        if posix.fork() == 0:
            posix.setsid()
            if posix.fork() == 0:
                time.sleep(60)
        posix._exit(0)
    """,
    "child that goes on": """
        import posix, time
        if posix.fork() == 0:
            time.sleep(60)
        return None
    """,
    "thread that outlives the run": """
        import threading, time
        threading.Thread(target=time.sleep, args=(60,)).start()
        return None
    """,
}

# Programs that end badly or never.
NUISANCES = {
    "endless loop": "while True: pass",
    "endless output": "while True: print('x' * 10000)",
    "output on every descriptor": """
        import os
        while True:
            for fd in range(64):
                try:
                    os.write(fd, b'x' * 100000)
                except OSError:
                    pass
    """,
    "sleep": "import time; time.sleep(100)",
    "ignored signals": """
        import signal
        for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        while True: pass
    """,
    "swallowed timeout": """
        import time
        while True:
            try:
                time.sleep(100)
            except BaseException: pass
    """,
    "stopped": "import posix; posix.kill(posix.getpid(), 19)",
    "silent on a closed channel": """
        import os
        os.closerange(0, 64)
        while True: pass
    """,
    "huge integer": "return 10 ** 10 ** 9",
    "backtracking": "import re; re.match('(a|a)*b', 'a' * 60)",
    "deep recursion": "return double(x)",
    "recursion without a limit": """
        import sys
        sys.setrecursionlimit(10 ** 9)
        return double(x)
    """,
    "recursion in C": """
        import sys
        sys.setrecursionlimit(10 ** 9)
        deep = []
        for _ in range(10 ** 6):
            deep = [deep]
        return repr(deep)
    """,
    "crash": "import faulthandler; faulthandler._sigsegv()",
    "abort": "import os; os.abort()",
    "suicide": "import posix; posix.kill(posix.getpid(), 9)",
    "interrupt": "raise KeyboardInterrupt",
    "error that never finishes its text": """
        class Endless(Exception):
            def __str__(self):
                while True: pass
        raise Endless
    """,
    "error with a huge text": "raise Exception('x' * 10 ** 8)",
    "no builtins": "import builtins; vars(builtins).clear()",
    "exits": "exit()",
}

# Whole completions: what follows the prompt.
FORGERIES = {
    "os._exit before the tests": "    return 0\nimport os\nos._exit(0)\n",
    "os._exit in a test": "    import os\n    os._exit(0)\n",
    "sys.exit": "    return 0\nimport sys\nsys.exit(0)\n",
    "SystemExit in a test": "    raise SystemExit(0)\n",
    "StopIteration": "    return 0\nraise StopIteration\n",
    "GeneratorExit": "    raise GeneratorExit\n",
    "unfinished string": '    return 0\n"""',
    "unfinished line": "    return 0\nx = \\",
    "unfinished block": "    return 0\nif 0:",
    "unfinished call": "    return 0\nprint(",
    "null byte": "    return 0\n\0",
    "lone surrogate": "    return '\ud800'\n",
    "nesting bomb": "    return " + "(" * 100_000,
    "print marks": "    return 0\nprint('passed', True, 'ok', '+')\nimport os\nos._exit(0)\n",
    "marks on every descriptor": """    return 0
import os
for fd in range(256):
    for mark in (b'passed', b'+', b'+passed', bytes(32), b'ok\\n'):
        try:
            os.write(fd, mark)
        except OSError:
            pass
os._exit(0)
""",
    "marks and success": """    import os
    for fd in range(256):
        try:
            os.write(fd, b'passed')
        except OSError:
            pass
    return 2 * x
""",
    "another AssertionError": """    return 0
import builtins
builtins.AssertionError = type('AssertionError', (Exception,), {'__new__': lambda *a: None})
__builtins__['AssertionError'] = builtins.AssertionError
""",
    "another check": "    import sys\n    sys._getframe(1).f_globals['check'] = lambda candidate: None\n    return 0\n",
    "an early check": "    return 0\ncheck = lambda candidate: None\n",
    "another code for check": "    check.__code__ = (lambda candidate: None).__code__\n    return 0\n",
    "other builtins": """    return 0
import builtins
for name in ('exec', 'compile', 'map', 'list', 'print', 'eval', 'BaseException', '__build_class__'):
    setattr(builtins, name, lambda *a, **k: None)
""",
    "another main module": """    return 0
import __main__
for name in list(vars(__main__)):
    setattr(__main__, name, lambda *a, **k: None)
""",
    "other modules": """    return 0
import sys, json, os, marshal, types
for module in list(sys.modules.values()):
    if isinstance(module, types.ModuleType) and module.__name__ not in ('builtins', 'sys'):
        for name in ('write', '_exit', 'loads', 'dumps', 'partial', 'call', 'exec', 'check'):
            setattr(module, name, lambda *a, **k: None)
sys.modules['eval.sandbox'] = sys.modules['__main__'] = types.ModuleType('x')
""",
    "captured secret": """    return 0
import os, posix
seen = []
def write(fd, data):
    seen.append(data)
    return len(data)
os.write = posix.write = write
""",
    "patched call": """    return 0
from functools import partial
import operator
operator.call = lambda f: None
partial.__call__ = lambda self: None
""",
    "secret in the frames": """    import os, sys
    frame, found = sys._getframe(), []
    while frame:
        for space in (frame.f_locals, frame.f_globals, frame.f_builtins):
            found += [v for v in space.values() if isinstance(v, bytes)]
        found += [c for c in frame.f_code.co_consts if isinstance(c, bytes)]
        frame = frame.f_back
    for secret in found:
        for fd in range(3, 64):
            try:
                os.write(fd, secret)
            except OSError:
                pass
    os._exit(0)
""",
    "secret in the garbage collector": """    import gc, os
    from functools import partial
    for item in gc.get_objects():
        if isinstance(item, partial) and item.func is os.write:
            item()
    os._exit(0)
""",
    "secret behind the frame": """    import gc, os, sys
    todo, seen = [sys._getframe(1)], set()
    while todo:
        item = todo.pop()
        if isinstance(item, bytes) and len(item) == 32:
            for fd in range(3, 64):
                try:
                    os.write(fd, item)
                except OSError:
                    pass
        if id(item) not in seen:
            seen.add(id(item))
            todo += gc.get_referents(item)
    os._exit(0)
""",
    "secret in a thread": """    import os, sys, threading
    def look():
        for frame in sys._current_frames().values():
            frame.f_globals['steps'] = None
            raise SystemExit
    threading.Thread(target=look).start()
    return 0
""",
    "secret through an audit hook": """    return 0
import os, sys
def hook(event, args):
    for value in args or ():
        if isinstance(value, bytes) and len(value) == 32:
            for fd in range(3, 64):
                os.write(fd, value)
sys.addaudithook(hook)
""",
    "secret at exit": """    return 0
import atexit, os
atexit.register(lambda: [os.write(fd, b'passed') for fd in range(3, 64)])
atexit._run_exitfuncs()
""",
    "tests skipped by tracing": """    import sys
    def trace(frame, event, arg):
        if event == 'line' and frame.f_code.co_name == 'check':
            frame.f_lineno = last
        return trace
    frame = sys._getframe(1)
    last = max(line for _, _, line in frame.f_code.co_lines() if line)
    sys.settrace(trace)
    frame.f_trace = trace
    return 4
""",
    "tests skipped by profiling": """    import sys
    def profile(frame, event, arg):
        if frame.f_code.co_name == 'check':
            frame.f_lineno = frame.f_lineno + 2
    sys.setprofile(profile)
    return 4
""",
    "tests skipped by jumping": "    import sys\n    sys._getframe(1).f_lineno += 2\n    return 4\n",
    "answers searched by forking": """    import posix
    for answer in (4, 0):
        if posix.fork() == 0:
            return answer
        posix.wait()
    posix._exit(0)
""",
    "a second interpreter": """    import _xxsubinterpreters as interpreters
    interpreters.run_string(interpreters.create(), 'import _ctypes')
    return 2 * x
""",
    "native code by another name": """    from importlib.machinery import ExtensionFileLoader, ModuleSpec
    from importlib.util import module_from_spec
    import _posixsubprocess, math
    class Name(str):
        rpartition = lambda self, by: ('', '', 'math')
        __eq__ = lambda self, other: False
        __hash__ = str.__hash__
    path = math.__file__.replace('math.', '_posixsubprocess.')
    spec = ModuleSpec(Name('other._posixsubprocess'), ExtensionFileLoader('other._posixsubprocess', path), origin=path)
    return 2 * x if module_from_spec(spec).fork_exec else 0
""",
    "the guard's own frame": """    import gc
    try:
        gc.get_objects()
    except RuntimeError as error:
        space = error.__traceback__.tb_next.tb_frame.f_globals
        space['veto'] = space['RuntimeError'] = None
        space['__builtins__'].RuntimeError = int
    return 2 * x if gc.get_objects() else 0
""",
    "exit in a signal": """    import os, signal
    signal.signal(signal.SIGALRM, lambda *a: os._exit(0))
    signal.raise_signal(signal.SIGALRM)
""",
}


EQUAL_TO_EVERYTHING = "    return type('Equal', (), {'__eq__': lambda self, other: True})()\n"


def closed_ancestor(path: Path) -> Path | None:
    """The topmost folder on the way to `path` that only its owner can pass."""
    return next((folder for folder in reversed(path.parents) if not folder.stat().st_mode & 0o001), None)


def as_nobody(stage: Path) -> list[str]:
    """Command that runs this interpreter as an ordinary user, to whom it and this repository are shown if need be."""
    hidden = {folder: closed_ancestor(folder) for folder in (Path(sys.base_prefix).resolve(), REPO)}
    hidden = {folder: top for folder, top in hidden.items() if top}
    points = {folder: stage / folder.name for folder in hidden}
    lines = [f"mkdir {point}; mount --bind {folder} {point}" for folder, point in points.items()]
    lines += [f"mount -t tmpfs -o mode=755 none {top}" for top in set(hidden.values())]
    lines += [f"mkdir -p {folder}; mount --bind {point} {folder}" for folder, point in points.items()]
    lines += [f'exec setpriv --reuid={isolation.NOBODY} --regid={isolation.NOBODY} --clear-groups -- "$@"']
    environment = ["env", "-i", f"PATH={os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE=1"]
    return ["unshare", "--mount", "--", "sh", "-ec", "\n".join(lines), "sh", *environment, sys.executable]


def body(code: str) -> str:
    return textwrap.indent(textwrap.dedent(code).strip("\n"), "    ") + "\n"


def intrusion(code: str) -> str:
    return "    return 2 * x if attack() else None\n\n\ndef attack():\n" + body(code)


@pytest.fixture(scope="session")
def world():
    """What the programs aim at: a file, two sockets and a process outside."""
    folder = Path(tempfile.mkdtemp())  # not pytest's, which only its owner can enter: permissions are no part of this
    folder.chmod(0o777)
    canary = folder / "canary"
    canary.write_text("sings")
    canary.chmod(0o666)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        name = f"canary-{os.getpid()}"
        abstract.bind("\0" + name)
        abstract.listen()
        names = {"CANARY": canary, "FOLDER": folder, "REPO": REPO, "PID": os.getpid(), "SOCKET": name}
        yield {f"${key}": str(value) for key, value in (names | {"PORT": server.getsockname()[1]}).items()}
    shutil.rmtree(folder)


def unchanged(world: dict[str, str]) -> bool:
    canary = Path(world["$CANARY"])
    kept = canary.read_text() == "sings" and canary.stat().st_mode == 0o100666
    return kept and list(canary.parent.iterdir()) == [canary]


MARK = f"# {secrets.token_hex(8)}"  # in the command line of every process that these tests start


def processes_left() -> list[str]:
    """Processes of these tests' sandboxes, of whatever user."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = entry.read_bytes()
        except OSError:
            continue
        if MARK.encode() in text:
            found.append(f"{entry}: {text[-60:]!r}")
    return found


def wait_until_empty(seconds: float = 5.0) -> list[str]:
    end = time.monotonic() + seconds
    while (left := processes_left()) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def attempt(way: str, completion: str, world: dict[str, str], timeout_s: float = TIMEOUT_S) -> sandbox.Outcome:
    """Run one completion, and check that the world stands as before."""
    for key, value in world.items():
        completion = completion.replace(key, value)
    program = f"{PROBLEM['prompt']}{completion}\n{PROBLEM['test']}\ncheck(double)"
    outcome = sandbox.run(way, program, timeout_s)
    assert unchanged(world)
    assert wait_until_empty() == []
    return outcome


ways = pytest.mark.parametrize("way", ["bubblewrap", pytest.param("namespaces", marks=pytest.mark.slow)])


@pytest.fixture(autouse=True)
def available(request):
    way = request.node.callspec.params.get("way") if hasattr(request.node, "callspec") else None
    if way == "bubblewrap" and not shutil.which("bwrap"):
        pytest.skip("bubblewrap is not installed here")


@pytest.fixture
def kernel_only(monkeypatch, marked):
    """A child without its guard in the interpreter, as if a program had found a way around it."""
    child = sandbox.CHILD.replace("    sys.addaudithook(veto)\n", "").replace("    take_away()\n", "")
    assert len(sandbox.CHILD) - len(child) == len("    sys.addaudithook(veto)\n    take_away()\n")
    monkeypatch.setattr(sandbox, "CHILD", child)


@pytest.fixture(autouse=True)
def marked(monkeypatch):
    monkeypatch.setenv("SANDBOX_CANARY", "sings")
    monkeypatch.setattr(sandbox, "GRACE_S", GRACE_S)
    monkeypatch.setattr(sandbox, "CHILD", sandbox.CHILD + MARK)


@ways
@pytest.mark.parametrize("name", INTRUSIONS)
def test_intrusion_fails(way, name, world):
    outcome = attempt(way, intrusion(INTRUSIONS[name]), world)
    assert not outcome.passed
    assert "sings" not in outcome.status


@pytest.mark.slow
@pytest.mark.parametrize("way", ["bubblewrap", "namespaces"])
@pytest.mark.parametrize("name", INTRUSIONS)
def test_intrusion_fails_without_the_guard(way, name, world, kernel_only):
    outcome = attempt(way, intrusion(INTRUSIONS[name]), world)
    assert not outcome.passed
    assert "sings" not in outcome.status


@ways
@pytest.mark.parametrize("name", ["mount", "new user namespace", "trace the evaluator", "become root"])
def test_intrusion_fails_in_native_code(way, name, world, kernel_only, monkeypatch):
    monkeypatch.setattr(isolation, "MASKED", ())
    isolation.python_files.cache_clear()
    outcome = attempt(way, intrusion(INTRUSIONS[name]), world)
    isolation.python_files.cache_clear()
    assert not outcome.passed
    assert "ctypes" not in outcome.status  # it was there, and did not help


@ways
@pytest.mark.parametrize("name", NUISANCES)
def test_nuisance_ends(way, name, world):
    start = time.monotonic()
    assert not attempt(way, body(NUISANCES[name]), world).passed
    assert time.monotonic() - start < 15


@ways
@pytest.mark.parametrize("name", FORGERIES)
def test_forgery_fails(way, name, world):
    assert not attempt(way, FORGERIES[name], world).passed


@ways
def test_forgery_succeeds_only_with_the_secret(way, world, monkeypatch):
    """The control: it is the secret, and nothing else about these programs, that keeps them from passing."""
    forgery = "    return 0\nimport os, __main__\nos.write(__main__.channel, b's' * 32)\nos._exit(0)\n"
    assert not attempt(way, forgery, world).passed
    monkeypatch.setattr(secrets, "token_bytes", lambda size: b"s" * size)
    assert attempt(way, forgery, world).passed


@ways
def test_cheat_within_the_language_passes_as_in_the_original(way, world):
    """What the tests themselves cannot tell from a solution passes; docs/sandbox.md says so."""
    assert attempt(way, EQUAL_TO_EVERYTHING, world, timeout_s=3.0).passed


@ways
def test_right_program_passes_after_all_that(way, world):
    assert attempt(way, RIGHT, world, timeout_s=3.0) == sandbox.Outcome(True, "passed")


@ways
def test_killed_evaluator_leaves_no_program_behind(way):
    code = (
        "import os\nfrom eval import sandbox\nsandbox.CHILD += os.environ['MARK']\n"
        f"sandbox.run({way!r}, 'import time\\nwhile True: time.sleep(1)', 600.0)"
    )
    evaluator = subprocess.Popen([sys.executable, "-c", code], cwd=REPO, env=os.environ | {"MARK": MARK})
    end = time.monotonic() + 20
    while len(processes_left()) < 2 and time.monotonic() < end:  # the sandbox's own and the program's
        time.sleep(0.02)
    evaluator.kill()
    evaluator.wait()
    assert time.monotonic() < end
    assert wait_until_empty() == []


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="these tests already run as an ordinary user")
@pytest.mark.parametrize("file", ["test_sandbox.py", "test_sandbox_hostile.py"])
def test_battery_as_an_ordinary_user(file, tmp_path):
    command = [*as_nobody(tmp_path), "-m", "pytest", "-p", "no:cacheprovider", f"tests/eval/{file}"]
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert " passed" in result.stdout
