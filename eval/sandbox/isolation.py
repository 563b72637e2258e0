"""What shuts an untrusted Python program in: the command that starts an interpreter inside namespaces of its own."""

import atexit
import functools
import importlib.util
import os
import shutil
import sys
import tempfile
from pathlib import Path

NOBODY = "65534"
TMP_BYTES = 16 * 2**20
PACKAGES = ("numpy", "numpy.libs")  # what programs may import besides the standard library, where installed
PACKAGES_INSIDE = "/packages"
SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")
ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "OMP_NUM_THREADS": "1"}

# As root: show the interpreter at a place that nobody can reach too, then be nobody. $@: pairs for bind mounts, --, command
STEP_DOWN = f"""
while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done
shift
exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups -- "$@"
"""

# Without bubblewrap: build the view in a tmpfs on $1 and run the command in it. $@: folder, pairs (outside, inside), --, command
BUILD_ROOT = f"""
root=$1
shift
mount -t tmpfs -o mode=755,size=1m,nosuid,nodev none "$root"
while [ "$1" != -- ]; do
    if [ -L "$1" ]; then cp -P "$1" "$root$2"
    else
        mkdir -p "$root$(dirname "$2")"
        if [ -d "$1" ]; then mkdir "$root$2"; else : > "$root$2"; fi
        mount --bind "$1" "$root$2"
        [ "$1" = /dev/null ] || mount -o remount,bind,ro "$root$2"
    fi
    shift 2
done
shift
mkdir "$root/tmp"
mount -t tmpfs -o mode=1777,size={TMP_BYTES},nosuid,nodev,noexec none "$root/tmp"
mount -o remount,bind,ro "$root"
echo 1 > /proc/sys/user/max_user_namespaces
unshare --user --map-user={NOBODY} --map-group={NOBODY} --root="$root" --wd=/tmp -- "$@"
exit $?
"""


def interpreter() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())


def python_files() -> dict[str, str]:
    """{path inside: path outside} of the interpreter, its library and `PACKAGES`."""
    library = str(Path(os.__file__).resolve().parents[1])
    files = {interpreter(): interpreter(), library: library}
    spec = importlib.util.find_spec(PACKAGES[0])
    if spec and spec.origin:
        folder = Path(spec.origin).parents[1]
        files |= {f"{PACKAGES_INSIDE}/{name}": str(folder / name) for name in PACKAGES if (folder / name).exists()}
    return files


@functools.cache
def stage(process: int) -> Path:
    """An empty folder of process number `process` that every user can pass through, removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="humaneval-"))
    folder.chmod(0o711)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def staged(files: dict[str, str]) -> dict[str, str]:
    """Mount points for `files` in the stage: {path inside: mount point}."""
    points = {}
    for number, (inside, outside) in enumerate(files.items()):
        point = stage(os.getpid()) / str(number)
        if Path(outside).is_dir():
            point.mkdir(exist_ok=True)
        else:
            point.touch()
        points[inside] = str(point)
    return points


def bubblewrap(files: dict[str, str]) -> list[str]:
    """Command prefix that runs a program in bubblewrap, seeing `files` ({inside: outside}) and the system's libraries."""
    system = [
        part
        for path in SYSTEM
        for part in (("--symlink", os.readlink(path), path) if os.path.islink(path) else ("--ro-bind-try", path, path))
    ]
    return [
        *("bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"),
        *("--uid", NOBODY, "--gid", NOBODY, "--hostname", "sandbox", *system),
        *(part for inside, outside in files.items() for part in ("--ro-bind", outside, inside)),
        *("--dev-bind", "/dev/null", "/dev/null", "--size", str(TMP_BYTES), "--tmpfs", "/tmp", "--remount-ro", "/"),
        *("--chdir", "/tmp", "--"),
    ]


def namespaces(files: dict[str, str]) -> list[str]:
    """The same with the tools of util-linux."""
    root = stage(os.getpid()) / "root"
    root.mkdir(exist_ok=True)
    pairs = {path: path for path in (*SYSTEM, "/dev/null") if os.path.lexists(path)} | files
    return [
        *("setpriv", "--no-new-privs", "unshare", "--user", "--map-root-user", "--mount", "--net", "--pid", "--ipc"),
        *("--uts", "--cgroup", "--fork", "--kill-child=KILL", "--", "sh", "-ec", BUILD_ROOT, "sh", str(root)),
        *(part for inside, outside in pairs.items() for part in (outside, inside)),
        "--",
    ]


def unprotected(files: dict[str, str]) -> list[str]:
    """Nothing around the program but the limits it starts with."""
    return []


WAYS = {"bubblewrap": bubblewrap, "namespaces": namespaces, "none": unprotected}


def command(way: str) -> list[str]:
    """Command prefix that starts a program by `way` (a key of `WAYS`), as nobody where this process is root."""
    files = python_files()
    if os.geteuid() != 0 or way == "none":
        return WAYS[way](files)
    points = staged(files)
    pairs = [part for inside, point in points.items() for part in (files[inside], point)]
    return ["unshare", "--mount", "--", "sh", "-ec", STEP_DOWN, "sh", *pairs, "--", *WAYS[way](points)]
