"""Finds the original files, in a local folder or by download, and fingerprints their content.

A config's `source` has these keys:
    folder    where the files are below `data=`, e.g. train/cot
    files     the accepted names of each role, globs below the folder. The first that matches is used; the log names
              any other that matches
    upstream  what to download without `data=`: a list of `{url}`, or of `{repo, revision, file}` for a dataset on the
              hub. `to` is the name of the file in the folder; an archive has none, and the content of its single top
              folder becomes the folder. `sha256` is the checksum; null means that we do not know it, and the log shows
              the one found, so that you can pin it
    messages  of training sets only: a jsonl of conversations, used instead of all of these
"""

import functools
import json
import logging
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from data_prep.download import downloaded, raw_folder
from data_prep.micro import generate
from data_prep.storage import sha256, write_json

log = logging.getLogger(__name__)

GENERATED = "generated"  # `data=generated` means the files of the micro profile (data_prep/micro)

# Names that are no data: hidden files (macOS leaves `._name` beside each file), backups, locks, unfinished downloads,
# and the copies that file managers make.
LEFTOVERS = (
    ".*", "*~", "#*#", "*.bak", "*.orig", "*.swp", "*.tmp", "*.part", "*.partial", "*.download", "*.crdownload",
    "__MACOSX", "Thumbs.db", "desktop.ini", "~$*",
    "Copy of *", "* copy.*", "* copy [0-9]*.*", "* - Copy.*", "* - Copy ([0-9]*).*", "* ([0-9]*).*",
)  # fmt: skip
SHOWN = 5  # names in a message


class Files(dict[str, list[Path]]):
    """Files by role, sorted by name. Raises ValueError for a role that the config does not have."""

    def __missing__(self, role: str) -> list[Path]:
        raise ValueError(f"source.files has no role '{role}', which its reader asks for; it has {', '.join(self)}.")


def locate(source: DictConfig, data: Path | str | None, cache_dir: Path) -> Path:
    """Return the folder with the original files.

    data: the folder that holds `source.folder`; None downloads the files once, "generated" generates them once
    Raises:
        FileNotFoundError: `data` does not hold `source.folder`, or a download does not exist any more
        ConnectionError, PermissionError: a download failed, or is gated
        ValueError: a download is no data, or does not have the pinned checksum
    """
    if data is None:
        return downloaded(source, cache_dir)
    if str(data) == GENERATED:
        data = generate(cache_dir)
    folder = Path(data, source.folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: data={data} must hold {source.folder} (see docs/data.md).")
    return folder


def held(source: DictConfig, data: Path | str | None, cache_dir: Path) -> Files:
    """Return the raw files of a training set that this machine has already, per role. Nothing is downloaded.

    Raises FileNotFoundError if they are not here.
    """
    if source.messages is not None:
        path = Path(source.messages)
        if not path.is_file():
            raise FileNotFoundError(f"dataset.source.messages={path} is not a file; give the jsonl of conversations.")
        return Files(messages=[path])
    root = raw_folder(source, cache_dir) if data is None else locate(source, data, cache_dir)
    if not root.is_dir():
        raise FileNotFoundError(f"{source.folder} has not been downloaded yet.")
    return find_files(source, root)


def fetched(source: DictConfig, data: Path | str | None, cache_dir: Path) -> Files:
    """Return the raw files of a training set or a benchmark, per role, after a download if it is needed.

    Raises what `locate` and `find_files` raise, and FileNotFoundError for `messages` that are not there.
    """
    if source.get("messages") is not None:
        return held(source, data, cache_dir)
    return find_files(source, locate(source, data, cache_dir))


def find_files(source: DictConfig, root: Path) -> Files:
    """Return the original files in `root`, per role; the log says what was left out.

    Raises FileNotFoundError if a role has none.
    """
    return Files({role: _first_match(root, role, accepted) for role, accepted in source.files.items()})


def single(files: Files, role: str) -> Path:
    """Return the file of a role that must have exactly one. Raises ValueError if the role's glob matched several."""
    first, *more = files[role]
    if more:
        raise ValueError(
            f"{role} must be one file, but {1 + len(more)} match: {_some(path.name for path in files[role])} in "
            f"{first.parent}; name the right one in source.files.{role}."
        )
    return first


def listed(folder: Path, pattern: str) -> list[Path]:
    """Return the data files in `folder` that match a glob, sorted; the log says what was left out.

    Left out are hidden files, folders, links to nothing, and what systems, editors and unfinished downloads leave
    behind (see LEFTOVERS). A pattern without `*`, `?` or `[` is a name, and that file is taken whatever its name is.
    """
    if not set(pattern) & set("*?["):
        return [path for path in [folder / pattern] if path.is_file()]
    matches = sorted(folder.glob(pattern))
    taken = [path for path in matches if path.is_file() and not _is_leftover(path.relative_to(folder))]
    if len(taken) < len(matches):
        left_out = [path for path in matches if path not in set(taken)]
        _warn_once(f"Left out in {folder}: {_some(str(path.relative_to(folder)) for path in left_out)}.")
    return taken


def fingerprint(files: Mapping[str, Iterable[Path]], cache_dir: Path) -> dict[str, list[list[str]]]:
    """Return `[name, sha256]` of every file, per role.

    `<cache_dir>/fingerprints.json` remembers them: a file with a known path, size and time is not read again.
    """
    memory = cache_dir / "fingerprints.json"
    known = _remembered(memory)
    seen = {str(path.resolve()): _stamp(path) for paths in files.values() for path in paths}
    fresh = {path for path, stamp in seen.items() if known.get(path, [None])[:-1] != stamp}
    for path in tqdm(sorted(fresh), desc="Reading checksums", disable=len(fresh) < 100):
        known[path] = [*seen[path], sha256(Path(path))]
    if fresh:
        _remember(memory, known)
    return {role: [[path.name, known[str(path.resolve())][-1]] for path in paths] for role, paths in files.items()}


def _first_match(root: Path, role: str, accepted: Iterable[str]) -> list[Path]:
    matches = [paths for pattern in accepted if (paths := listed(root, pattern))]
    if not matches:
        names = " or ".join(accepted)
        raise FileNotFoundError(f"No {names} ({role}) in {root}; see docs/data.md for the expected layout.")
    used, *others = matches
    if left_out := [path.name for paths in others for path in paths if path not in used]:
        _warn_once(f"{role}: using {_some(path.name for path in used)} in {root}; left out: {_some(left_out)}.")
    return used


def _is_leftover(relative: Path) -> bool:
    return any(fnmatchcase(part, pattern) for part in relative.parts for pattern in LEFTOVERS)


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if names[SHOWN:] else "")


@functools.cache  # a table looks for the same files in every cell
def _warn_once(message: str) -> None:
    log.warning(message)


def _remembered(memory: Path) -> dict[str, list[Any]]:
    try:
        return dict(json.loads(memory.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # missing, damaged, or of another user: the files are read again
        return {}


def _remember(memory: Path, known: dict[str, list[Any]]) -> None:
    try:
        write_json(memory, known)
    except OSError as error:
        _warn_once(f"{memory} cannot be written ({error.strerror}): the next run reads the files again.")


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
