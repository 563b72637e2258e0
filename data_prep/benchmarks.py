"""What the readers of benchmark files share: packed files, and rows of JSON and Parquet (docs/data.md).

Benchmarks are read strictly. The first broken row stops the reading, because a score over fewer items is another score.
"""

from pathlib import Path
from typing import Any

from data_prep.files import load_json, needed, numbered_lines, strict
from data_prep.storage import remedy


def agreeing(path: Path) -> Path:
    """`path`. Raises ValueError if the same file is also there unpacked, or packed (`.gz`), and its lines differ."""
    other = path.with_suffix("") if path.suffix == ".gz" else path.with_name(f"{path.name}.gz")
    if other.is_file() and _lines(path) != _lines(other):
        raise ValueError(f"{path} and {other} differ; remove the one that is not meant.")
    return path


def _lines(path: Path) -> list[str]:
    return [line for _, line in numbered_lines(path)]


def entries(path: Path, name: str) -> list[Any]:
    """The list `name` of the JSON object in `path`. Raises ValueError if it is not there."""
    return next(strict([(str(path), load_json(path))], lambda document: needed(document, name, list)))


def parquet_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """`("path[index]", row)` of a Parquet file. Raises ValueError if it is not one, or not whole."""
    import pyarrow  # half a second, and only some benchmarks need it
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a complete Parquet file ({error}); {remedy(path)}.") from error
    return [(f"{path}[{index}]", row) for index, row in enumerate(rows)]
