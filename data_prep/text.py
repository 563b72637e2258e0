"""Text files, read as UTF-8: what editors leave in them is handled here, alike for every kind of file."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from data_prep.storage import remedy

# UTF-32 comes first: its little-endian mark starts with that of UTF-16.
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


@contextmanager
def open_text(path: Path, errors: str = "strict", newline: str | None = None) -> Iterator[TextIO]:
    """Open a UTF-8 text file for reading. A file named `.gz` is unpacked.

    Byte-order marks at the start are left out. Every line end (CRLF, CR, LF) reads as a newline. Those inside a JSON
    string are escaped and stay as they are.

    newline: "" leaves line ends as they are
    errors: "strict", or "surrogateescape" to let a caller find the broken lines itself
    Raises ValueError, naming the file: it has another encoding, or is not a complete gzip file.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            _refuse_other_encodings(path, file.peek(4)[:4])
            while file.peek(3)[:3] == codecs.BOM_UTF8:
                file.read(3)
            yield io.TextIOWrapper(file, encoding="utf-8", errors=errors, newline=newline)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a complete gzip file ({error}); {remedy(path)}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is {_not_utf8(path, error)}.") from error


def read_text(path: Path) -> str:
    """Return the whole text of a file, read as `open_text` reads it. Raises ValueError like it."""
    with open_text(path) as file:
        return file.read()


def _refuse_other_encodings(path: Path, start: bytes) -> None:
    if start and not start.strip(b"\0"):
        raise ValueError(f"{path} starts with zero bytes, so it is damaged; {remedy(path)}.")
    marked = next((name for mark, name in MARKS.items() if start.startswith(mark)), None)
    name = marked or _unmarked(start)
    if name:
        raise ValueError(f"{path} is {name} text, but UTF-8 is needed; convert it with `iconv -f {name} -t UTF-8`.")


def _unmarked(start: bytes) -> str | None:
    """The encoding of text without a mark: a first letter of ASCII leaves zero bytes in UTF-16 and UTF-32."""
    zeros = start.count(0)
    return "UTF-32" if zeros == 3 else "UTF-16" if zeros else None


def _not_utf8(path: Path, error: UnicodeDecodeError) -> str:
    if error.reason == "unexpected end of data":
        return f"truncated: it ends inside a character; {remedy(path)}"
    return f"not UTF-8 text (byte {error.object[error.start]:#04x}: {error.reason}); save it as UTF-8"
