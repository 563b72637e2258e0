"""Reading original files: numbered lines, JSON documents, needed fields, and the tally of broken rows."""

import gzip
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class BrokenRow(ValueError):
    """A row that cannot be used; the text says why, the caller knows where."""


@dataclass
class Tally:
    """What was read: the number of rows, and `file:line: reason` of each broken one."""

    lines: int = 0
    broken: list[str] = field(default_factory=list)

    def check(self, max_share: float, name: str) -> None:
        """Raises ValueError if more than `max_share` of the rows are broken, or if there is none."""
        if self.lines == 0:
            raise ValueError(f"The raw files of '{name}' hold no row; check that the download is complete.")
        if len(self.broken) > max_share * self.lines:
            raise ValueError(
                f"{len(self.broken)} of {self.lines} rows of '{name}' are broken, more than the allowed share "
                f"{max_share}: {'; '.join(self.broken[:3])}{'; ...' if self.broken[3:] else ''}. "
                "Repair or download the files again, or raise dataset.max_broken_share."
            )


def usable(rows: Iterable[tuple[str, Any]], parse: Callable[[Any], T], tally: Tally) -> Iterator[T]:
    """`parse` of every `(where, row)`; rows that raise BrokenRow are counted in `tally` and left out."""
    for where, row in rows:
        tally.lines += 1
        try:
            yield parse(row)
        except BrokenRow as error:
            tally.broken.append(f"{where}: {error}")


def strict(rows: Iterable[tuple[str, Any]], parse: Callable[[Any], T]) -> Iterator[T]:
    """As `usable`, for files that must not have a broken row: the first one raises ValueError."""
    for where, row in rows:
        try:
            yield parse(row)
        except BrokenRow as error:
            raise ValueError(f"{where}: {error}; download the file again.") from error


def numbered_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """`("path:line", line)` of every line that is not blank; `.gz` files are unpacked.

    Raises:
        ValueError: the file ends inside a JSON object, or is not a complete gzip file
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    _check_last_line(path, number, line)
                if line.strip():
                    yield f"{path}:{number}", line
        except (EOFError, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is not a complete gzip file ({error}); download it again.") from error


def _check_last_line(path: Path, number: int, line: bytes) -> None:
    try:
        json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path} is truncated: line {number}, its last, is incomplete; download it again.") from error


def load_json(path: Path) -> Any:
    """The JSON document in `path`. Raises ValueError if it is not complete and valid."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is truncated or not JSON ({error}); download it again.") from error


def load_rows(path: Path) -> list[tuple[str, Any]]:
    """`("path[index]", row)` for a file that is one JSON list. Raises ValueError if it is not."""
    document = load_json(path)
    if not isinstance(document, list):
        raise ValueError(f"{path} must hold one JSON list, got {type(document).__name__}.")
    return [(f"{path}[{index}]", row) for index, row in enumerate(document)]


def decode(line: bytes) -> Any:
    """One line of jsonl. Raises BrokenRow."""
    try:
        return json.loads(line)
    except ValueError as error:
        raise BrokenRow(f"not valid JSON ({error})") from error


def needed(row: Any, name: str, kind: type[T]) -> T:
    """Field `name` of a JSON object. Raises BrokenRow if it is absent, of another type, or text that is not Unicode."""
    if not isinstance(row, dict):
        raise BrokenRow(f"a JSON object is needed, got {type(row).__name__}")
    if name not in row:
        raise BrokenRow(f"field '{name}' is missing")
    value = row[name]
    if not isinstance(value, kind):
        raise BrokenRow(f"field '{name}' must be {kind.__name__}, got {type(value).__name__}")
    if isinstance(value, str):
        _check_unicode(name, value)
    return value


def texts(row: Any, *names: str) -> tuple[str, ...]:
    """The text fields `names` of a JSON object. Raises BrokenRow."""
    return tuple(needed(row, name, str) for name in names)


def _check_unicode(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BrokenRow(f"field '{name}' holds half of a surrogate pair, which no tokenizer takes") from error
