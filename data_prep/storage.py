"""Writes files and folders that are whole or absent, and hashes content."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock

FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))  # of the disk, of the user's share of it
DOWNLOADS = ".downloads.json"  # in a downloaded folder: the checksums of what it was made from


def sha256(path: Path) -> str:
    """Return the checksum of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: Any) -> str:
    """Return the hash of anything that JSON can write, 64 hex digits. The order of keys does not count."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def remedy(where: Path | str) -> str:
    """Say what to do about a damaged file: delete the folder we downloaded it to, or get the user's own copy again.

    where: the file, also with a line or an index behind its name
    """
    for folder in Path(where).parents:
        if (folder / DOWNLOADS).is_file():
            return f"delete the folder {folder} and run the same command again, which downloads it anew"
    return "download the file again"


def write_bytes(path: Path, content: bytes) -> None:
    """Write `path` at once: a reader finds the old content or the new, never a part, even after a kill."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, like `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value, indented, like `write_bytes`."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file in UTF-8."""
    return json.loads(path.read_text(encoding="utf-8"))


def made_once(target: Path, fill: Callable[[Path], None]) -> Path:
    """Return the folder `target`. If it is not there yet, `fill` writes it.

    Several processes, of several users, may ask for it at once. Nothing half-written stays.
    Raises OSError, with a remedy: the disk is full, or the place cannot be written.
    """
    if target.is_dir():  # also where the cache is read-only
        return target
    _make_writable(target.parent)
    with FileLock(f"{target}.lock", mode=0o666):
        if not target.is_dir():
            with full_disk_named(target.parent), new_folder(target) as folder:
                fill(folder)
    return target


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"{folder} cannot be made ({error.strerror}); set cache_dir to a folder of your own.") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} cannot be written; set cache_dir to a folder of your own.")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill. It then replaces `path`; after an error nothing of it stays.

    A reader finds the old folder, the new one or, for the moment between two renames, none: never a part of one.
    """
    temporary, old = (path.with_name(f".{path.name}.{kind}") for kind in ("tmp", "old"))
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    if old.exists() and not path.exists():  # left by a kill between the two renames
        old.rename(path)
    try:
        yield temporary
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():  # to remove it in its place takes a while, and a kill would leave half of it
            shutil.move(path, old)  # also where a container's file system cannot rename what its image holds
        temporary.replace(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turn every error of a full disk into one OSError. The system, torch and safetensors each raise their own.

    folder: where is written, or will be once it is made
    """
    try:
        yield
    except Exception as error:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if any(sign in str(error) for sign in FULL) or shutil.disk_usage(there).free < 2**20:
            raise OSError(f"The disk is full at {folder}. Free some space and run the same command again.") from error
        raise
