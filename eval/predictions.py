"""The store of predictions: one finished item a line, so that a kill loses only what was being generated.

A line carries the checksum of its content. Damaged lines (a cut tail, garbage, a changed character) are left out, the
file that held them is set aside as `predictions.jsonl.corrupt`, and their items are evaluated again.
"""

import fcntl
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from data_prep.storage import write_bytes

log = logging.getLogger(__name__)

Record = dict[str, Any]  # id, task, prompt, outputs, predictions, gold, scores, notes


class Store:
    """The predictions of one evaluation, to be used as a context manager: `with Store(folder) as store`.

    folder:  made if it is not there
    records: the finished items by id
    Raises BlockingIOError if another process is writing to the same folder.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "predictions.jsonl"
        self.records: dict[str, Record] = {}
        self._descriptor = self._lock = -1

    def __enter__(self) -> "Store":
        self._lock = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise BlockingIOError(
                f"{self.path.parent} is being written by another evaluation; wait for it, or stop it."
            ) from None
        self.records = recovered(self.path)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.fsync(self._descriptor)
        os.close(self._descriptor)
        os.close(self._lock)

    def add(self, record: Record) -> None:
        """Append one item. Raises ValueError if it is there already, OSError if the disk is full."""
        if record["id"] in self.records:
            raise ValueError(f"Item '{record['id']}' is already in {self.path}.")
        line = _line(record)
        if os.write(self._descriptor, line) < len(line):  # one call: the line is there as a whole, or it is damaged
            raise OSError(f"The disk is full at {self.path}; free some space and run the same command again.")
        self.records[record["id"]] = record

    def replace(self, records: Iterable[Record]) -> None:
        """Put these in the place of all that are there, at once."""
        self.records = {record["id"]: record for record in records}
        write_bytes(self.path, b"".join(map(_line, self.records.values())))
        os.close(self._descriptor)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)


def read(path: Path) -> dict[str, Record]:
    """The undamaged records of a predictions file by id, in file order. Raises FileNotFoundError if it is missing."""
    return _parsed(path.read_bytes())[0]


def recovered(path: Path) -> dict[str, Record]:
    """The records of a predictions file; empty if it is missing. A file with damaged or double lines is repaired."""
    content = path.read_bytes() if path.exists() else b""
    records, damaged = _parsed(content)
    if damaged:
        aside = _set_aside(path)
        write_bytes(path, b"".join(map(_line, records.values())))
        log.warning(
            "%s: line(s) %s damaged; the file is kept as %s, the items of these lines are evaluated again.",
            path,
            ", ".join(map(str, damaged)),
            aside.name,
        )
    return records


def _parsed(content: bytes) -> tuple[dict[str, Record], list[int]]:
    """Records by id, and the numbers of the lines that are damaged or repeat an item."""
    records: dict[str, Record] = {}
    damaged = []
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        record = _record(line)
        if record is None or record["id"] in records:
            damaged.append(number)
        else:
            records[record["id"]] = record
    return records, damaged


def _line(record: Record) -> bytes:
    return _json({**record, "checksum": zlib.crc32(_json(record))}) + b"\n"


def _record(line: bytes) -> Record | None:
    """The content of a line, None if it is not what `_line` made of it."""
    try:
        record = json.loads(line)
        record.pop("checksum")
        return record if _line(record) == line else None
    except (ValueError, AttributeError, KeyError, TypeError):
        return None


def _json(value: Record) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _set_aside(path: Path) -> Path:
    """A copy of `path` under the first free name `.corrupt`, `.corrupt1`, ...: a kill must not lose the good lines."""
    names = (path.with_name(f"{path.name}.corrupt{number or ''}") for number in range(1000))
    aside = next(name for name in names if not name.exists())
    shutil.copy2(path, aside)
    return aside
