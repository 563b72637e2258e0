"""Which version of the code made a result: a key of what Python code does, whatever its comments say."""

import ast
import functools
from pathlib import Path

from data_prep.storage import digest


@functools.cache
def code_key(package: str) -> str:
    """Eight hex digits that change with the code of one of this project's packages, e.g. `mos`.

    Comments, docstrings and layout do not count. Raises FileNotFoundError if the package is not here.
    """
    folder = Path(__file__).resolve().parents[1] / package
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no package of this project.")
    return digest({path.relative_to(folder).as_posix(): _meaning(path) for path in sorted(folder.rglob("*.py"))})[:8]


def _meaning(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body[0] = ast.Pass()
    return ast.dump(tree)
