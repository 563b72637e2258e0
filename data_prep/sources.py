"""Where original files come from: a local folder, or a pinned download; and the fingerprints of their content.

A config's `source` has
    folder    the place below `data=` of the command line, e.g. train/cot
    files     per role of a file, the accepted names (globs below the folder); the first that matches is used
    upstream  without `data=`: a list of downloads, `{url}` or `{repo, revision, file}` of a dataset on the hub, with
              `to` (its name in the folder; absent for an archive, whose single top folder becomes the folder) and
              `sha256` (null: not known to us; the log then shows it, so that it can be pinned)
    messages  training sets only: a ready jsonl of messages, used instead of all of these
"""

import functools
import json
import logging
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from data_prep.download import downloaded
from data_prep.micro import generate
from data_prep.storage import sha256, write_json

log = logging.getLogger(__name__)

GENERATED = "generated"  # as `data`: the micro profile's files (data_prep/micro), made when first asked for

# Names that are no data: hidden files (macOS leaves `._name` beside each file), backups, unfinished downloads.
LEFTOVERS = (
    ".*", "*~", "#*#", "*.bak", "*.orig", "*.swp", "*.tmp", "*.part", "*.partial", "*.download", "*.crdownload",
    "__MACOSX", "Thumbs.db", "desktop.ini",
)  # fmt: skip
SHOWN = 5  # names in a message

Files = dict[str, list[Path]]  # by role, sorted by name


def locate(source: DictConfig, data: Path | str | None, cache_dir: Path) -> Path:
    """The folder that holds the original files; downloaded once if `data` is None, generated once if it is "generated".

    Raises:
        FileNotFoundError: the folder is not below `data`
        ConnectionError, PermissionError: the download failed, or is gated
        ValueError: a download does not have the pinned checksum
    """
    if data is None:
        return downloaded(source, cache_dir)
    if str(data) == GENERATED:
        data = generate(cache_dir)
    folder = Path(data, source.folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: data={data} must hold {source.folder} (see docs/data.md).")
    return folder


def find_files(source: DictConfig, root: Path) -> Files:
    """Return the original files in `root`, per role; the log says what was left out.

    Raises FileNotFoundError if a role has none.
    """
    return {role: _first_match(root, role, accepted) for role, accepted in source.files.items()}


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
    """`[name, sha256]` of every file, per role. A file whose path, size and time are known is not read again."""
    memory = cache_dir / "fingerprints.json"
    known = json.loads(memory.read_text(encoding="utf-8")) if memory.is_file() else {}
    seen = {str(path.resolve()): _stamp(path) for paths in files.values() for path in paths}
    fresh = {path for path, stamp in seen.items() if known.get(path, [None])[:-1] != stamp}
    for path in tqdm(sorted(fresh), desc="Reading checksums", disable=len(fresh) < 100):
        known[path] = [*seen[path], sha256(Path(path))]
    if fresh:
        write_json(memory, known)
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


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
