"""The checkout of open-instruct, and what else its code needs. Whatever is missing is said before anything is run."""

import subprocess
from importlib.util import find_spec
from pathlib import Path

REPOSITORY = "https://github.com/allenai/open-instruct"
COMMIT = "f745360f50d2363d615029fce150d2bed59eb8e9"  # of 29 February 2024 (docs/protocol.md, Two variants)
USED = ("eval", "open_instruct")  # folders whose code is run


def checked(path: str | None, metric_scripts: str | None) -> Path:
    """The folder of the checkout.

    Raises FileNotFoundError if one of the two folders is missing or is something else; ValueError for another commit
    or edited code; ModuleNotFoundError without the package `evaluate`.
    """
    if path is None:
        raise FileNotFoundError(f"open_instruct names no checkout: {_get('open-instruct')} and give its folder.")
    folder = Path(path).resolve()
    if not all((folder / name).is_dir() for name in USED):
        raise FileNotFoundError(f"open_instruct={path} is no checkout of open-instruct: {_get(path)}.")
    head = _git(folder, "rev-parse", "HEAD")
    if head != COMMIT:
        found = f"at commit {head[:9]}" if head else "no git checkout, so that its version is not known"
        raise ValueError(f"open_instruct={path} is {found}, but {COMMIT[:9]} is compared: {_get(path)}.")
    if edited := _git(folder, "status", "--porcelain", "--untracked-files=no", "--", *USED):
        raise ValueError(f"{edited.split()[-1]} in open_instruct={path} was edited: git -C {path} checkout -- .")
    if find_spec("evaluate") is None:
        raise ModuleNotFoundError(
            "open-instruct's metrics need the package evaluate: pip install -r requirements/crosscheck.txt"
        )
    if metric_scripts is not None and not Path(metric_scripts).is_dir():
        raise FileNotFoundError(
            f"metric_scripts={metric_scripts} is no folder; give the folder metrics of a copy of "
            "https://github.com/huggingface/evaluate, or null to fetch them."
        )
    return folder


def _get(where: str) -> str:
    return f"git clone {REPOSITORY} {where} && git -C {where} checkout {COMMIT[:9]}"


def _git(folder: Path, *arguments: str) -> str:
    """What git says of the repository that `folder` is the root of; empty outside one."""
    if not (folder / ".git").exists():
        return ""
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, encoding="utf-8")
    return done.stdout.strip()
