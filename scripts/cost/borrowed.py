"""A cache that may be read but not changed: what a plan works with."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def borrowed(cache_dir: Path) -> Iterator[Path]:
    """A temporary folder that shows what `cache_dir` holds; what is added to it disappears in the end.

    The entries of `cache_dir` and of the folders in it are links. Our caches replace files and folders as a whole and
    never write into them, so that no link is written through.
    """
    with tempfile.TemporaryDirectory(prefix="plan-") as temporary:
        for entry in cache_dir.iterdir() if cache_dir.is_dir() else ():
            _show(entry.resolve(), Path(temporary, entry.name))
        yield Path(temporary)


def _show(entry: Path, place: Path) -> None:
    if not entry.is_dir():
        place.symlink_to(entry)
        return
    place.mkdir()
    for inner in entry.iterdir():
        if inner.suffix != ".lock":  # a lock is opened for writing
            (place / inner.name).symlink_to(inner)
