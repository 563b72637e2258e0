"""Pinned downloads: tried again when a server is busy, continued when a connection breaks, checked before use."""

import gzip
import json
import logging
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
from huggingface_hub import get_token, hf_hub_url
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm
from urllib3.exceptions import MaxRetryError
from urllib3.util import Retry

from data_prep.storage import DOWNLOADS, digest, made_once, remedy, sha256, write_json, write_text

log = logging.getLogger(__name__)

Entry = dict[str, Any]  # one entry of a config's `source.upstream`

# Waits 0, 1, 2, 4, 8 and 16 s, or as long as the server says. The server has no say beyond five minutes.
RETRY = Retry(total=6, backoff_factor=0.5, status_forcelist=(408, 429, 500, 502, 503, 504), retry_after_max=300)
TIMEOUT = (10, 60)  # seconds to connect, and between two pieces of the answer
CHUNK = 8192  # bytes; a broken connection loses less than this
LOCAL = "use a local copy (data=...)"
NO_ARCHIVE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


def raw_folder(source: DictConfig, cache_dir: Path) -> Path:
    """The folder `<cache_dir>/raw/<set>-<key>` that holds, or will hold, the files of `source.upstream`.

    The key does not depend on pinned checksums. So pinning one later downloads nothing; it checks what is there.
    """
    upstream: Any = OmegaConf.to_container(source.upstream, resolve=True)
    addresses = [{key: value for key, value in entry.items() if key != "sha256"} for entry in upstream]
    return cache_dir / "raw" / f"{Path(source.folder).name}-{digest(addresses)[:16]}"


def downloaded(source: DictConfig, cache_dir: Path) -> Path:
    """Return the folder of `raw_folder`, downloaded once.

    Raises:
        ConnectionError, FileNotFoundError, PermissionError: an address cannot be reached, is gone, or is gated
        ValueError: what came is a web page, a damaged archive, or has another checksum than the config pins
    """
    upstream: Any = OmegaConf.to_container(source.upstream, resolve=True)
    target = raw_folder(source, cache_dir)
    parts = target.with_name(f"{target.name}.parts")  # outlives a failed run, so that the next one goes on
    made_once(target, lambda folder: _download_all(upstream, folder, parts))
    found = json.loads((target / DOWNLOADS).read_text(encoding="utf-8"))
    for entry in upstream:
        _check_pin(entry, found[_name(entry)], remedy(target / DOWNLOADS))
    return target


def _download_all(upstream: list[Entry], folder: Path, parts: Path) -> None:
    parts.mkdir(exist_ok=True)
    files = [parts / str(number) for number in range(len(upstream))]
    for entry, file in zip(upstream, files, strict=True):
        if not file.is_file():
            _fetch(entry, file)
    write_json(folder / DOWNLOADS, {_name(e): _checked(f, e) for e, f in zip(upstream, files, strict=True)})
    for entry, file in zip(upstream, files, strict=True):
        _place(file, entry, folder)
    shutil.rmtree(parts)


def _name(entry: Entry) -> str:
    return entry.get("url") or f"{entry['repo']}/{entry['file']}"


def _address(entry: Entry) -> tuple[str, dict[str, str]]:
    """Return the URL of an entry, and the headers to ask with. Only the hub gets the token."""
    if "url" in entry:
        return entry["url"], {}
    token = get_token()
    where = {"repo_type": "dataset", "revision": entry["revision"], "endpoint": os.environ.get("HF_ENDPOINT")}
    return hf_hub_url(entry["repo"], entry["file"], **where), {"Authorization": f"Bearer {token}"} if token else {}


def _fetch(entry: Entry, file: Path) -> None:
    """Download an entry to `file`. Raises one sentence for everything that can go wrong."""
    log.info("Downloading %s", _name(entry))
    part = file.with_name(f"{file.name}.part")
    url, headers = _address(entry)
    try:
        _patiently(lambda: _receive(url, headers, part), part)
    except MaxRetryError as error:
        raise _failure(entry, error.reason) from error
    except OSError as error:  # all of requests' errors are OSErrors
        raise _failure(entry, error) from error
    part.replace(file)


def _patiently(attempt: Callable[[], None], part: Path) -> None:
    """Call `attempt` until it succeeds. Attempts that made `part` longer do not count.

    Raises MaxRetryError after the last attempt of RETRY, and at once what another attempt would not change.
    """
    retry = RETRY
    while True:
        before = _size(part)
        try:
            return attempt()
        except requests.RequestException as error:
            if not _is_temporary(error):
                raise
            retry = (RETRY if _size(part) > before else retry).increment(error=error)
            log.warning("%s. Trying again.", _reason(error))
            retry.sleep(error.response.raw if error.response is not None else None)


def _reason(error: Exception | None) -> str:
    broke = isinstance(error, requests.exceptions.ChunkedEncodingError)  # its own text is a tuple of exceptions
    return "The connection broke" if broke else str(error)


def _is_temporary(error: requests.RequestException) -> bool:
    if error.response is not None:
        return error.response.status_code in RETRY.status_forcelist
    broken = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return isinstance(error, broken) and not isinstance(error, requests.exceptions.SSLError)


def _receive(url: str, headers: dict[str, str], part: Path) -> None:
    """Write the answer to `part`, behind what an earlier attempt left there if the server's file is still the same."""
    headers = headers | {"Accept-Encoding": "identity"} | _range(part)
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink()  # it is longer than the file, so it belongs to no version of it: start again
            raise requests.ConnectionError(f"{url} is shorter than what an earlier attempt brought")
        response.raise_for_status()
        _refuse_page(url, response)
        continued = response.status_code == requests.codes.partial_content
        if not continued:
            packed = "Content-Encoding" in response.headers  # then the server's offsets are not those of `part`
            write_text(_version(part), "" if packed else response.headers.get("ETag", ""))
        _write(response, part, url, continued)


def _version(part: Path) -> Path:
    """The file that remembers of which version (ETag) of the server's file `part` is the start."""
    return part.with_name(f"{part.name}.version")


def _range(part: Path) -> dict[str, str]:
    """The headers that ask for the rest of the same version, or for all if that cannot be told (RFC 9110, 13.1.5)."""
    version = _version(part).read_text(encoding="utf-8") if _size(part) and _version(part).is_file() else ""
    return {"Range": f"bytes={_size(part)}-", "If-Range": version} if version.startswith('"') else {}


def _write(response: requests.Response, part: Path, url: str, continued: bool) -> None:
    start = _size(part) if continued else 0
    length = None if "Content-Encoding" in response.headers else response.headers.get("Content-Length")
    total = start + int(length) if length else None
    with (
        part.open("ab" if continued else "wb") as file,
        tqdm(desc=Path(url).name, initial=start, total=total, unit="B", unit_scale=True) as bar,
    ):
        for chunk in response.iter_content(CHUNK):
            bar.update(file.write(chunk))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _failure(entry: Entry, error: Exception | None) -> OSError:
    """One sentence for a failed download."""
    name, response = _name(entry), getattr(error, "response", None)
    status = response.status_code if response is not None else None
    if status in (401, 403) and "repo" in entry:
        page = _address(entry)[0].partition("/resolve/")[0]
        return PermissionError(
            f"{name} is gated or private (HTTP {status}): accept its terms at {page} and set HF_TOKEN, or {LOCAL}."
        )
    if status in (401, 403):
        return PermissionError(
            f"{name} is gated (HTTP {status}): it asks for a log-in; download it with a browser and {LOCAL}."
        )
    if status in (404, 410):
        return FileNotFoundError(
            f"{name} does not exist any more (HTTP {status}); correct source.upstream in the config, or {LOCAL}."
        )
    return ConnectionError(f"Downloading {name} failed ({_reason(error)}); check the network and the disk, or {LOCAL}.")


def _refuse_page(name: str, response: requests.Response) -> None:
    if response.headers.get("Content-Type", "").startswith("text/html"):
        raise _no_data(name)


def _no_data(name: str) -> ValueError:
    return ValueError(
        f"{name} gave a web page instead of the file, perhaps the log-in page of a network; open the address in a "
        f"browser, or {LOCAL}."
    )


def _checked(file: Path, entry: Entry) -> str:
    """Return the checksum of a file that arrived. A file that cannot be right is deleted: the next run starts anew."""
    found = sha256(file)
    try:
        _refuse_no_data(file, _name(entry))
        _check_pin(entry, found, "try again")
    except ValueError:
        file.unlink()
        raise
    if entry.get("sha256") is None:
        log.warning("%s has no pinned checksum; pin it in the config with sha256: %s", _name(entry), found)
    return found


def _refuse_no_data(file: Path, name: str) -> None:
    with file.open("rb") as opened:
        start = opened.read(1000).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not start:
        raise ValueError(f"{name} is empty; try again later, or {LOCAL}.")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise _no_data(name)
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{name} is a Git LFS pointer, not the file itself; correct its address, or {LOCAL}.")


def _check_pin(entry: Entry, found: str, again: str) -> None:
    if entry.get("sha256") not in (None, found):
        raise ValueError(
            f"{_name(entry)} has sha256 {found}, but the config pins {entry['sha256']}: the download is damaged, or "
            f"the file has changed; {again}, or {LOCAL}."
        )


def _place(file: Path, entry: Entry, folder: Path) -> None:
    if "to" in entry:
        (folder / entry["to"]).parent.mkdir(parents=True, exist_ok=True)
        file.replace(folder / entry["to"])
    else:
        _unpack(file, folder, entry["url"])


def _unpack(file: Path, folder: Path, name: str) -> None:
    """Move the content of the archive's single top folder to `folder`. A bad archive is deleted."""
    unpacked = file.with_name("unpacked")
    shutil.rmtree(unpacked, ignore_errors=True)
    try:
        _extract(file, unpacked, name)
        top = _top(unpacked, name)
    except ValueError:
        file.unlink()
        raise
    for path in top.iterdir():
        path.replace(folder / path.name)


def _extract(file: Path, unpacked: Path, name: str) -> None:
    try:
        with tarfile.open(file) as archive:
            archive.extractall(unpacked, filter="data")
    except NO_ARCHIVE as error:
        reason = str(error).partition(":\n")[0]  # tarfile lists every compression that it tried
        raise ValueError(f"{name} is not a complete archive ({reason}); try again, or {LOCAL}.") from error


def _top(unpacked: Path, name: str) -> Path:
    tops = sorted(path for path in unpacked.glob("*/") if path.name != "__MACOSX")
    if len(tops) != 1:
        found = ", ".join(path.name for path in tops[:5]) or "none"
        raise ValueError(
            f"{name} must hold one folder at its top, but holds {found}; correct its address, or unpack it and {LOCAL}."
        )
    return tops[0]
