"""Text is read and written in a stated encoding, so that no result depends on the locale of a machine."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for package in ("mos", "data_prep", "eval", "scripts") for path in (ROOT / package).rglob("*.py"))


def without_encoding(code: str) -> list[int]:
    """The lines of calls that read or write text in the encoding of the locale."""
    return [node.lineno for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call) and _unstated(node)]


def _unstated(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    given = {keyword.arg for keyword in call.keywords}
    if name in ("run", "Popen", "check_output"):
        return bool(given & {"text", "universal_newlines"}) and "encoding" not in given
    owner = getattr(getattr(call.func, "value", None), "id", "")
    if name == "open" and owner not in ("os", "tarfile", "gzip", "zipfile"):
        return "encoding" not in given and not _binary(call)
    ours = isinstance(call.func, ast.Name) or owner == "storage"  # `data_prep.storage` writes UTF-8
    return name in ("read_text", "write_text") and "encoding" not in given and not ours


def _binary(call: ast.Call) -> bool:
    position = 0 if isinstance(call.func, ast.Attribute) else 1
    modes = [*call.args[position : position + 1], *(k.value for k in call.keywords if k.arg == "mode")]
    parts = [part.value for mode in modes for part in ast.walk(mode) if isinstance(part, ast.Constant)]
    return any("b" in str(part) for part in parts)


@pytest.mark.parametrize(
    ("code", "unstated"),
    [
        ("path.read_text()", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.write_text('x')", True),
        ("storage.write_text(path, 'x')", False),
        ("open(path)", True),
        ("path.open('a')", True),
        ("path.open('rb')", False),
        ("open(path, mode='wb')", False),
        ("path.open('ab' if more else 'wb')", False),
        ("subprocess.run(command, text=True)", True),
        ("subprocess.run(command, text=True, encoding='utf-8')", False),
    ],
)
def test_the_check_sees_what_it_is_for(code: str, unstated: bool) -> None:
    assert bool(without_encoding(code)) == unstated


def test_every_text_has_a_stated_encoding() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in MODULES
        for line in without_encoding(path.read_text(encoding="utf-8"))
    ]
    assert not found
