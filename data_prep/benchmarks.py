"""What the readers of benchmark files share: finding them, and rows of JSON and Parquet (docs/data.md).

Benchmarks are read strictly. The first broken row stops the reading, because a score over fewer items is another score.
"""

from pathlib import Path
from typing import Any

from data_prep.files import load_json, needed, numbered_lines, strict
from data_prep.sources import listed
from data_prep.storage import remedy


def existing(root: Path, pattern: str) -> list[Path]:
    """The files below `root` that match a glob, sorted. Raises FileNotFoundError if there is none."""
    paths = listed(root, pattern)
    if not paths:
        raise FileNotFoundError(f"No '{pattern}' in {root}; docs/data.md says where each benchmark's files belong.")
    return paths


def only(root: Path, *names: str) -> Path:
    """The file in `root` that has one of these names, packed (`.gz`) or not.

    Raises:
        FileNotFoundError: there is none
        ValueError: there are several, and their lines differ
    """
    paths = [root / name for name in names if (root / name).is_file()]
    if not paths:
        raise FileNotFoundError(f"No '{names[0]}' in {root}; docs/data.md says where each benchmark's files belong.")
    if len({tuple(line for _, line in numbered_lines(path)) for path in paths}) > 1:
        raise ValueError(f"{' and '.join(map(str, paths))} differ; remove the one that is not meant.")
    return paths[0]


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
