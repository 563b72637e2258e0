"""Pinned downloads: one file or archive at a time, checked before it is used."""

import logging
import shutil
import tarfile
import tempfile
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from data_prep.storage import digest, made_once, sha256

log = logging.getLogger(__name__)


def downloaded(source: DictConfig, cache_dir: Path) -> Path:
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
