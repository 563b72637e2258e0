"""Where original files come from: a local folder, or a pinned download; and the fingerprints of their content.

A config's `source` has
    folder    the place below `data=` of the command line, e.g. train/cot
    files     per role of a file, the accepted names (globs below the folder); the first that matches is used
    upstream  without `data=`: a list of downloads, `{url}` or `{repo, revision, file}` of a dataset on the hub, with
              `to` (its name in the folder; absent for an archive, whose single top folder becomes the folder) and
              `sha256` (null: not known to us; the log then shows it, so that it can be pinned)
    messages  training sets only: a ready jsonl of messages, used instead of all of these
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

from filelock import FileLock
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

log = logging.getLogger(__name__)

GENERATED = "generated"  # as `data`: the micro profile's files (data_prep/micro), made when first asked for

Files = dict[str, list[Path]]  # by role, sorted by name


def locate(source: DictConfig, data: Path | str | None, cache_dir: Path) -> Path:
    """The folder that holds the original files; downloaded once if `data` is None, generated once if it is "generated".

    Raises:
        FileNotFoundError: the folder is not below `data`
        ConnectionError, PermissionError: the download failed, or is gated
        ValueError: a download does not have the pinned checksum
    """
    if data is None:
        return _downloaded(source, cache_dir)
    if str(data) == GENERATED:
        from data_prep.micro import generate  # which needs `made_once` from here

        data = generate(cache_dir)
    folder = Path(data, source.folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: data={data} must hold {source.folder} (see docs/data.md).")
    return folder


def find_files(source: DictConfig, root: Path) -> Files:
    """The original files in `root`, per role. Raises FileNotFoundError if a role has none."""
    return {role: _first_match(root, role, accepted) for role, accepted in source.files.items()}


def fingerprint(files: Mapping[str, Iterable[Path]], cache_dir: Path) -> dict[str, list[list[str]]]:
    """`[name, sha256]` of every file, per role. A file whose path, size and time are known is not read again."""
    memory = cache_dir / "fingerprints.json"
    known = json.loads(memory.read_text()) if memory.is_file() else {}
    seen = {str(path.resolve()): _stamp(path) for paths in files.values() for path in paths}
    fresh = {path for path, stamp in seen.items() if known.get(path, [None])[:-1] != stamp}
    for path in tqdm(sorted(fresh), desc="Reading checksums", disable=len(fresh) < 100):
        known[path] = [*seen[path], sha256(Path(path))]
    if fresh:
        write_json(memory, known)
    return {role: [[path.name, known[str(path.resolve())][-1]] for path in paths] for role, paths in files.items()}


def sha256(path: Path) -> str:
    """The checksum of a file, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: Any) -> str:
    """The hash of anything JSON can write, in hex digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write `path` so that a reader, or a kill, finds the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """As `write_bytes`, for text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """As `write_bytes`, for a JSON value."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def made_once(target: Path, fill: Callable[[Path], None]) -> Path:
    """The folder `target`, which `fill` writes if it is not there yet.

    Several processes may ask for it at once; nothing half-written stays.
    Raises OSError, with a remedy, if the disk is full.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            _make(target, fill)
    return target


def _make(target: Path, fill: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".partial-") as temporary:
        folder = Path(temporary) / target.name
        folder.mkdir()
        try:
            fill(folder)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise OSError(f"The disk is full at {target.parent}; free some space and run the same again.") from error
        folder.replace(target)


def _first_match(root: Path, role: str, accepted: Iterable[str]) -> list[Path]:
    for pattern in accepted:
        if found := sorted(root.glob(pattern)):
            return found
    raise FileNotFoundError(f"No {' or '.join(accepted)} ({role}) in {root}; see docs/data.md for the expected layout.")


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _downloaded(source: DictConfig, cache_dir: Path) -> Path:
    upstream: Any = OmegaConf.to_container(source.upstream, resolve=True)
    target = cache_dir / "raw" / f"{Path(source.folder).name}-{digest(upstream)[:16]}"
    return made_once(target, lambda folder: _download_all(upstream, folder))


def _download_all(upstream: list[dict[str, Any]], folder: Path) -> None:
    for entry in upstream:
        _download(entry, folder)


def _download(entry: dict[str, Any], folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        file = _fetch(entry, Path(temporary))
        _check(file, entry)
        if "to" in entry:
            (folder / entry["to"]).parent.mkdir(parents=True, exist_ok=True)
            file.replace(folder / entry["to"])
        else:
            _unpack(file, folder, entry["url"])


def _fetch(entry: dict[str, Any], folder: Path) -> Path:
    name = entry.get("url") or f"{entry['repo']}/{entry['file']}"
    log.info("Downloading %s", name)
    try:
        if "url" in entry:
            return _fetch_url(entry["url"], folder / "download")
        where = {"repo_id": entry["repo"], "repo_type": "dataset", "revision": entry["revision"]}
        return Path(hf_hub_download(filename=entry["file"], local_dir=folder, **where)).resolve()
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise PermissionError(
            f"{name} is gated, private or gone: accept its terms on the hub and set HF_TOKEN, "
            "or use a local copy (data=...)."
        ) from error
    except (OSError, HTTPException) as error:
        reason = error if "url" in entry else type(error).__name__  # the hub's messages are paragraphs
        raise ConnectionError(
            f"Downloading {name} failed ({reason}); check the network and the disk, or use a local copy (data=...)."
        ) from error


def _fetch_url(url: str, path: Path) -> Path:
    with urllib.request.urlopen(url, timeout=60) as response, path.open("wb") as file:
        total = int(response.headers.get("Content-Length", 0)) or None
        with tqdm.wrapattr(file, "write", total=total, desc=Path(url).name) as out:
            shutil.copyfileobj(response, out, length=1 << 20)
    if total not in (None, path.stat().st_size):
        raise OSError(f"{path.stat().st_size} of {total} bytes arrived")
    return path


def _check(file: Path, entry: dict[str, Any]) -> None:
    found, name = sha256(file), entry.get("url") or entry["file"]
    if entry.get("sha256") is None:
        log.warning("%s has no pinned checksum; pin it in the config with sha256: %s", name, found)
    elif found != entry["sha256"]:
        raise ValueError(
            f"{name} has sha256 {found}, but the config pins {entry['sha256']}: the download is damaged, or the file "
            "has changed; try again, or use a local copy (data=...)."
        )


def _unpack(file: Path, folder: Path, name: str) -> None:
    """The content of the archive's single top folder, into `folder`."""
    unpacked = file.parent / "unpacked"
    try:
        with tarfile.open(file) as archive:
            archive.extractall(unpacked, filter="data")
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{name} is not a complete archive ({error}); try again.") from error
    (top,) = (path for path in unpacked.iterdir() if path.is_dir())
    for path in top.iterdir():
        path.replace(folder / path.name)
