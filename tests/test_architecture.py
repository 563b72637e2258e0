"""The layout of docs/architecture.md: imports go one way and never in a circle, and commands are short."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("mos", "mos_vllm", "data_prep", "eval", "scripts")
MAY_IMPORT = {
    "mos": set(),
    "mos_vllm": {"mos"},
    "data_prep": set(),
    "eval": {"data_prep", "mos_vllm"},
    "scripts": {"mos", "mos_vllm", "data_prep", "eval"},
}


NAME = re.compile(rf"(?:{'|'.join(PACKAGES)})(?:\.\w+)+")


def dotted(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {dotted(path): path for package in PACKAGES for path in (ROOT / package).rglob("*.py")}


def imports(source):
    """The dotted names that a module imports, inside functions too; not those that only type checkers read."""
    tree = ast.parse(source)
    for_types = {node for branch in ast.walk(tree) if is_type_checking(branch) for node in ast.walk(branch)}
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


ARROWS = {
    module: {target for target in imports(path.read_text(encoding="utf-8")) if target in MODULES} - {module}
    for module, path in MODULES.items()
}


def circles(arrows):
    """The modules in or between circles: what is left without those that import, or are imported by, no other."""
    rest = {module: set(targets) for module, targets in arrows.items()}
    while ends := [m for m in rest if not rest[m] & rest.keys() or all(m not in rest[other] for other in rest)]:
        for module in ends:
            del rest[module]
    return sorted(rest)


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == ["b", "c"]


def test_no_module_imports_in_a_circle():
    assert circles(ARROWS) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_one_way(package):
    inside = [module for module in MODULES if module.split(".")[0] == package]
    outside = {(m, target) for m in inside for target in ARROWS[m] if target.split(".")[0] != package}
    assert {(m, target) for m, target in outside if target.split(".")[0] not in MAY_IMPORT[package]} == set()


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_commands_are_short(path):
    """A command composes, calls and prints; what it calls is in a room. Files that no one runs are not meant."""
    text = path.read_text(encoding="utf-8")
    if '__name__ == "__main__"' in text:
        assert len(text.splitlines()) <= 60


@pytest.mark.parametrize("module", MODULES)
def test_modules_can_be_read_at_once(module):
    assert len(MODULES[module].read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("module", MODULES)
def test_modules_that_stand_as_text_exist(module):
    """A program is started by its name, which no import checks."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    for name in filter(NAME.fullmatch, texts):
        assert name in MODULES or name.rpartition(".")[0] in MODULES, name  # a module, or something in one


def test_the_page_names_every_room():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    rooms = [folder.name for folder in (ROOT / "scripts").iterdir() if (folder / "__init__.py").is_file()]
    for name in (*PACKAGES, *rooms):
        assert f"{name}/" in page
