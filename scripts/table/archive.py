"""Runs without their weights: enough to make published tables again, with further rows and seeds, without training."""

import io
import json
import lzma
import tarfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from filelock import Timeout
from omegaconf import OmegaConf

from data_prep.storage import new_folder, write_bytes
from eval import weights
from scripts.cell import runs, served
from scripts.table.collect import PATHS
from scripts.table.publish import cells_behind, tables_in

END = ".tar.xz"
KEPT = ("run.json", "metrics.jsonl", runs.HELD_OUT_LOSSES, "eval/*/*.json", "eval/*/*.jsonl")
ADAPTERS = ("adapter", "lora")  # of each the config, and the record of the weights


def pack(path: Path, target: Path) -> Path:
    """Write the finished run `path` to `target`/<its name>.tar.xz; the same run gives the same bytes."""
    file, raw = target / f"{path.name}{END}", io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, content in sorted(contents(runs.load(path))):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    write_bytes(file, lzma.compress(raw.getvalue(), preset=9))
    return file


def contents(run: runs.Run) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file that is kept; the config without the paths of this machine."""
    config = {key: value for key, value in run.cfg.items() if key not in PATHS}
    yield "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)).encode()
    for pattern in KEPT:
        for file in run.path.glob(pattern):
            yield str(file.relative_to(run.path)), file.read_bytes()
    for name in ADAPTERS:
        folder = run.path / name
        if folder.is_dir():
            yield f"{name}/adapter_config.json", (folder / "adapter_config.json").read_bytes()
            known = {"sha256": weights.key(folder), "rank": served.rank(run)}
            yield f"{name}/{weights.RECORD}", json.dumps(known).encode()


def unpack(file: Path, target: Path) -> bool:
    """Restore a run into `target`/<its name>; False if a finished one is there. An unfinished one is replaced.

    Raises ValueError for a file that is damaged, or that would write elsewhere; BlockingIOError for an unfinished run
    that some process is training.
    """
    path = target / file.name.removesuffix(END)
    if runs.is_finished(path):
        return False
    try:
        with runs.lock(path, blocking=False) if path.exists() else nullcontext():
            if runs.is_finished(path):  # meanwhile
                return False
            whole = io.BytesIO(lzma.decompress(file.read_bytes()))  # at once, since it ends with a checksum
            with new_folder(path) as folder, tarfile.open(fileobj=whole) as tar:
                tar.extractall(folder, filter="data")
    except Timeout as error:
        raise BlockingIOError(
            f"{path} is not finished and in use by another process; restore it when that has ended."
        ) from error
    except (tarfile.TarError, lzma.LZMAError) as error:
        raise ValueError(f"{file} cannot be restored: {error}. Get it again from the repository.") from error
    return True


def behind(results: Path, runs_dir: Path, profile: str) -> list[Path]:
    """The runs that the tables in `results` report, each once.

    Raises FileNotFoundError if there is no table, or not all of its runs are left; ValueError for a table that
    disagrees with its cells (`scripts.table.publish.cells_behind`).
    """
    cells = {path: cell for name in tables_in(results) for path, cell in cells_behind(results, name).items()}
    found = sorted({runs_dir / profile / path.parent.name / cell["run"] for path, cell in cells.items()})
    if missing := [path for path in found if not runs.is_finished(path)]:
        raise FileNotFoundError(f"{missing[0]}, of which {results} reports, is no longer there; make the table again.")
    return found
