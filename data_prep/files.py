"""Reads rows from original files (jsonl, JSON, CSV) and checks their fields.

Training sets are read with `usable`, which leaves broken rows out and counts them. Benchmarks are read with `strict`,
which stops at the first broken row, because a score over fewer items is another score.
"""

import csv
import io
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from data_prep.storage import remedy
from data_prep.text import open_text, read_text

log = logging.getLogger(__name__)

BYTES = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8, where a text was read with "surrogateescape"
T = TypeVar("T")


class BrokenRow(ValueError):
    """A row that cannot be used. The message says why; `usable` and `strict` add where."""


@dataclass
class Tally:
    """Counts what was read: all rows, and `file:line: reason` for each broken one."""

    lines: int = 0
    broken: list[str] = field(default_factory=list)

    def check(self, max_share: float, name: str) -> None:
        """Raise ValueError if more than `max_share` (0 to 1) of the rows are broken, or if there are no rows."""
        if self.lines == 0:
            raise ValueError(f"The raw files of '{name}' hold no row; check that the download is complete.")
        if len(self.broken) > max_share * self.lines:
            raise ValueError(
                f"{len(self.broken)} of {self.lines} rows of '{name}' are broken, more than the allowed share "
                f"{max_share}: {'; '.join(self.broken[:3])}{'; ...' if self.broken[3:] else ''}. "
                "Repair or download the files again, or raise dataset.max_broken_share."
            )


def usable(rows: Iterable[tuple[str, Any]], parse: Callable[[Any], T], tally: Tally) -> Iterator[T]:
    """Yield `parse(row)` of every `(where, row)`. Rows that raise BrokenRow are left out and counted in `tally`."""
    for where, row in rows:
        tally.lines += 1
        try:
            yield parse(row)
        except BrokenRow as error:
            tally.broken.append(f"{where}: {error}")


def strict(rows: Iterable[tuple[str, Any]], parse: Callable[[Any], T]) -> Iterator[T]:
    """Yield `parse(row)` of every `(where, row)`. Raises ValueError, with the place, at the first broken row."""
    for where, row in rows:
        try:
            yield parse(row)
        except BrokenRow as error:
            raise ValueError(f"{where}: {error}; {remedy(where)}.") from error


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield `("path:line", line)` for every line that is not blank; `decode` reads them. `.gz` files are unpacked.

    Raises ValueError: the file ends inside a JSON object, is not a complete gzip file, or is UTF-16 or UTF-32.
    """
    # One line that is not UTF-8 must not stop a file of 100,000: `decode` finds the bytes and reports a broken row.
    with open_text(path, errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            if not line.endswith("\n"):
                _check_last_line(path, number, line)
            yield f"{path}:{number}", line


def _check_last_line(path: Path, number: int, line: str) -> None:
    try:
        json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is truncated: line {number}, its last, is incomplete; {remedy(path)}.") from error


def csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield `("path:line", cells)` for every row of a CSV file that is not blank.

    Cells stay text: `None` and `0.10` are not interpreted.
    If every LF of the file follows a CR, or there are only CRs, a program has converted it. Line ends inside cells are
    then turned back, too, so the cells are as before. In other files they stay as they are: one of MMLU's own files has
    a cell with CRLF.
    Raises ValueError: a quote is not closed, or the file is not UTF-8.
    """
    with open_text(path, newline="") as file:
        text = file.read()
    converted = "\r" in text and "\n" not in text.replace("\r\n", "")
    if converted:
        text = text.replace("\r\n", "\n") if "\n" in text else text.replace("\r", "\n")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if converted and any("\n" in cell for cell in row):
                _warn_of_converted(path.parent)
            if row:
                yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: {error}; {remedy(path)}.") from error


@cache  # once a folder: MMLU has 57 files
def _warn_of_converted(folder: Path) -> None:
    log.warning(
        "The line ends of files in %s were converted. They are read as newlines, also inside cells; a cell that had "
        "another line end before cannot be told. Unpack the download again to be sure.",
        folder,
    )


def load_json(path: Path) -> Any:
    """Return the JSON document in `path`. Raises ValueError if it is not complete, not valid or not UTF-8."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is truncated or not JSON ({error}); {remedy(path)}.") from error


def load_rows(path: Path) -> list[tuple[str, Any]]:
    """Return `("path[index]", row)` for every entry of a file that is one JSON list. Raises ValueError if it is not."""
    document = load_json(path)
    if not isinstance(document, list):
        raise ValueError(f"{path} must hold one JSON list, got {type(document).__name__}.")
    return [(f"{path}[{index}]", row) for index, row in enumerate(document)]


def decode(line: str) -> Any:
    """Return the JSON value of a line from `numbered_lines`. Raises BrokenRow."""
    if wrong := BYTES.search(line):
        raise BrokenRow(f"not UTF-8 text (byte {ord(wrong[0]) - 0xDC00:#04x})")
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BrokenRow(f"not valid JSON ({error})") from error


def needed(row: Any, name: str, kind: type[T]) -> T:
    """Return field `name` of a JSON object.

    Raises BrokenRow: the field is missing, is not a `kind`, or is text that is not Unicode.
    """
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
    """Return the text fields `names` of a JSON object. Raises BrokenRow."""
    return tuple(needed(row, name, str) for name in names)


def _check_unicode(name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BrokenRow(f"field '{name}' holds half of a surrogate pair, which no tokenizer takes") from error
