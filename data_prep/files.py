"""Reading original files: numbered lines, JSON documents, needed fields, and the tally of broken rows."""

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

LINE_END = re.compile("\r\n|\r|\n")
BYTES = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8, where a text was read with "surrogateescape"
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
            raise ValueError(f"{where}: {error}; {remedy(where)}.") from error


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """`("path:line", line)` of every line that is not blank, for `decode`. `.gz` files are unpacked.

    Raises ValueError: the file ends inside a JSON object, is not a complete gzip file, or is UTF-16 or UTF-32.
    """
    # A line that is not UTF-8 is one broken row, not the end of a file of 100,000: `decode` reports it.
    with open_text(path, errors="surrogateescape") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                _check_last_line(path, number, line)
            if line.strip():
                yield f"{path}:{number}", line


def _check_last_line(path: Path, number: int, line: str) -> None:
    try:
        json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is truncated: line {number}, its last, is incomplete; {remedy(path)}.") from error


def csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """`("path:line", cells)` of every row of a CSV file. No cell is interpreted: `None` and `0.10` stay as they are.

    Where all line ends are alike, those inside cells read as newlines, so a file that an editor or unpacker converted
    gives the same cells. Where some differ, those inside cells stay: MMLU's own files have three such cells.
    Raises ValueError: a quote is not closed, or the file is not UTF-8.
    """
    with open_text(path, newline="") as file:
        text = file.read()
    converted = set(LINE_END.findall(text)) in ({"\r\n"}, {"\r"})
    if converted:
        text = LINE_END.sub("\n", text)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in reader:
            if converted and any("\n" in cell for cell in row):
                _warn_of_converted(path.parent)
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
    """The JSON document in `path`. Raises ValueError if it is not complete and valid, or not UTF-8."""
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is truncated or not JSON ({error}); {remedy(path)}.") from error


def load_rows(path: Path) -> list[tuple[str, Any]]:
    """`("path[index]", row)` for a file that is one JSON list. Raises ValueError if it is not."""
    document = load_json(path)
    if not isinstance(document, list):
        raise ValueError(f"{path} must hold one JSON list, got {type(document).__name__}.")
    return [(f"{path}[{index}]", row) for index, row in enumerate(document)]


def decode(line: str) -> Any:
    """The JSON value of one line of `numbered_lines`. Raises BrokenRow."""
    if wrong := BYTES.search(line):
        raise BrokenRow(f"not UTF-8 text (byte {ord(wrong[0]) - 0xDC00:#04x})")
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
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
