"""Where original files come from: a local folder, or a pinned download; and the fingerprints of their content.

A config's `source` has
    folder    the place below `data=` of the command line, e.g. train/cot
    files     per role of a file, the accepted names (globs below the folder); the first that matches is used
    upstream  without `data=`: a list of downloads, `{url}` or `{repo, revision, file}` of a dataset on the hub, with
              `to` (its name in the folder; absent for an archive, whose single top folder becomes the folder) and
              `sha256` (null: not known to us; the log then shows it, so that it can be pinned)
    messages  training sets only: a ready jsonl of messages, used instead of all of these
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from data_prep.download import downloaded
from data_prep.micro import generate
from data_prep.storage import sha256, write_json

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
        return downloaded(source, cache_dir)
    if str(data) == GENERATED:
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
    known = json.loads(memory.read_text(encoding="utf-8")) if memory.is_file() else {}
    seen = {str(path.resolve()): _stamp(path) for paths in files.values() for path in paths}
    fresh = {path for path, stamp in seen.items() if known.get(path, [None])[:-1] != stamp}
    for path in tqdm(sorted(fresh), desc="Reading checksums", disable=len(fresh) < 100):
        known[path] = [*seen[path], sha256(Path(path))]
    if fresh:
        write_json(memory, known)
    return {role: [[path.name, known[str(path.resolve())][-1]] for path in paths] for role, paths in files.items()}


def _first_match(root: Path, role: str, accepted: Iterable[str]) -> list[Path]:
    for pattern in accepted:
        if found := sorted(root.glob(pattern)):
            return found
    raise FileNotFoundError(f"No {' or '.join(accepted)} ({role}) in {root}; see docs/data.md for the expected layout.")


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
