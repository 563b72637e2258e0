"""What shuts an untrusted Python program in: the command that starts an interpreter inside namespaces of its own."""

import atexit
import functools
import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

NOBODY = 65534
TMP_BYTES = 16 * 2**20
PACKAGES = ("numpy", "numpy.libs")  # what programs may import besides the standard library, where installed
PACKAGES_INSIDE = "/packages"
MASKED = ("_ctypes", "_testcapi", "_testinternalcapi", "_xxsubinterpreters")  # doors to raw memory
SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "OMP_NUM_THREADS": "1"}

# As root: bind the interpreter where nobody, too, can reach it, then become nobody.
# Arguments: pairs (file, mount point), --, command.
STEP_DOWN = f"""
while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done
shift
exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups -- "$@"
"""

# Without bubblewrap: build the program's view of the file system on a folder, and run the command in it, with a second
# user namespace that takes the capabilities away again and cannot have a third one inside.
# Arguments: folder, pairs (path outside, path inside), --, command.
BUILD_ROOT = f"""
root=$1
shift
mount -t tmpfs -o mode=755,size=1m,nosuid,nodev none "$root"
while [ "$1" != -- ]; do
    to=$root$2
    mkdir -p "${{to%/*}}"
    if [ -L "$1" ]; then cp -P "$1" "$to"
    else
        if [ -d "$1" ]; then mkdir "$to"; elif [ ! -e "$to" ]; then : > "$to"; fi
        mount --bind "$1" "$to"
        [ "$1" = /dev/null ] || mount -o remount,bind,ro "$to"
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


def packages_folder() -> Path | None:
    """The folder that holds `PACKAGES`."""
    spec = importlib.util.find_spec(PACKAGES[0])
    return Path(spec.origin).parents[1] if spec and spec.origin else None


def import_path(way: str) -> list[str]:
    """Where a program that is started by `way` finds `PACKAGES`; nowhere if they are not installed."""
    folder = packages_folder()
    return [] if folder is None else [str(folder) if way == "none" else PACKAGES_INSIDE]


@functools.cache
def python_files() -> dict[str, str]:
    """{path inside: path outside} of the interpreter, its library (without `MASKED`) and `PACKAGES`."""
    library = str(Path(os.__file__).resolve().parents[1])
    files = {interpreter(): interpreter(), library: library}
    extensions = Path(sysconfig.get_config_var("DESTSHARED")).resolve()
    files |= {str(path): os.devnull for name in MASKED for path in extensions.glob(f"{name}.*")}
    folder = packages_folder()
    if folder:
        files |= {f"{PACKAGES_INSIDE}/{name}": str(folder / name) for name in PACKAGES if (folder / name).exists()}
    return files


@functools.cache
def stage(process: int) -> Path:
    """A folder of process number `process` for mount points, passable by every user and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="sandbox-"))
    folder.chmod(0o711)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def mount_point(process: int, path: str) -> str:
    """An empty file or folder in the stage, to bind `path` to."""
    name = path.strip("/").replace("/", "-")
    point = stage(process) / name
    if Path(path).is_dir():
        point.mkdir(exist_ok=True)
    else:
        point.touch()
    return str(point)


def bubblewrap(files: dict[str, str]) -> list[str]:
    """Command that runs a program in bubblewrap; it sees `files` ({inside: outside}) and the system's libraries."""
    links = {path: str(Path(path).readlink()) for path in SYSTEM if Path(path).is_symlink()}
    binds = {path: path for path in SYSTEM if path not in links and Path(path).exists()} | files
    return [
        *("bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"),
        *("--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox"),
        *(part for inside, target in links.items() for part in ("--symlink", target, inside)),
        *(part for inside, outside in binds.items() for part in ("--ro-bind", outside, inside)),
        *("--dev-bind", os.devnull, os.devnull, "--size", str(TMP_BYTES), "--tmpfs", "/tmp"),
        *("--remount-ro", "/", "--chdir", "/tmp", "--"),
    ]


def namespaces(files: dict[str, str]) -> list[str]:
    """The same with the tools of util-linux."""
    root = stage(os.getpid()) / "root"
    root.mkdir(exist_ok=True)
    pairs = {path: path for path in (*SYSTEM, os.devnull) if os.path.lexists(path)} | files
    return [
        *("setpriv", "--no-new-privs", "--pdeathsig=KILL", "--"),
        *("unshare", "--user", "--map-root-user", "--mount", "--net", "--pid", "--ipc", "--uts", "--cgroup"),
        *("--fork", "--kill-child=KILL", "--", "sh", "-ec", BUILD_ROOT, "sh", str(root)),
        *(part for inside, outside in pairs.items() for part in (outside, inside)),
        "--",
    ]


def unprotected(files: dict[str, str]) -> list[str]:
    """Nothing around the program but the limits that it starts with."""
    return []


WAYS = {"bubblewrap": bubblewrap, "namespaces": namespaces, "none": unprotected}


def can_step_down() -> bool:
    """Whether this process can become another user. Root of a user namespace that has one user cannot."""
    ranges = [line.split() for line in Path("/proc/self/uid_map").read_text(encoding="utf-8").splitlines()]
    known = any(int(first) <= NOBODY < int(first) + int(count) for first, _, count in ranges)
    return os.geteuid() == 0 and known


def command(way: str) -> list[str]:
    """Command that starts a program by `way` (a key of `WAYS`), as nobody where this process is root."""
    files = python_files()
    if way == "none" or not can_step_down():
        return WAYS[way](files)
    points = {
        inside: outside if outside == os.devnull else mount_point(os.getpid(), outside)
        for inside, outside in files.items()
    }
    pairs = [part for inside, point in points.items() if point != os.devnull for part in (files[inside], point)]
    return ["unshare", "--mount", "--", "sh", "-ec", STEP_DOWN, "sh", *pairs, "--", *WAYS[way](points)]
