"""Runs on disk: where a run lives, what determines it, and how a finished one is read."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from data_prep import micro, readers, storage
from data_prep.sources import fingerprint, held
from data_prep.storage import sha256
from scripts.cell.provenance import package_version

# trainer settings that do not change the result
WITHOUT_EFFECT = ("logging_steps", "save_steps", "eval_steps", "uncheckpointed_tokens")
HELD_OUT_LOSSES = "validation.jsonl"  # in a run directory: what the finished adapter loses on each validation example
# trainer settings that decide how a forward pass is rounded
ARITHMETIC = (
    *("micro_batch_size", "upcast", "dequantize_once", "attention", "liger"),
    *("compute_dtype", "adapter_dtype", "quantization"),
)
# at these values the result is that of older runs
NEWER = {"upcast": True, "dequantize_once": False, "liger": False, "attention": "fused", "fast_dropout": False}


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

    The key depends on the content of the raw files. Before they are downloaded it is a provisional one, for plans.
    Raises FileNotFoundError if the folder of a local model, on whose content the key depends, is missing.
    """
    return Path(cfg.runs_dir) / cfg.profile / cfg.model.name / f"{name(cfg)}-{digest(identity(cfg))}"


def name(cfg: DictConfig) -> str:
    """`<method>-r<rank>-<dataset>-seed<seed>`; rank `all`: the whole pool; a vanilla row has rank 0 and `none`."""
    vanilla = cfg.method.config is None
    rank = 0 if vanilla else cfg.method.r or "all"
    return f"{cfg.method.name}-r{rank}-{'none' if vanilla else cfg.dataset.name}-seed{cfg.seed}"


def identity(cfg: DictConfig) -> dict[str, Any]:
    """All that determines the result of a run: the model, the method, the data, the trainer's settings and the seed.

    Code counts through versions: of the method (configs/method), of the prepared data (`data_prep.readers`), of a
    generated base model (configs/model). Raise the version when the behaviour changes.
    """
    trainer = _plain(cfg.trainer)
    base = {"compute_dtype": trainer["compute_dtype"], "quantization": trainer["quantization"]}
    method = {key: value for key, value in _plain(cfg.method).items() if key != "label"}
    common = {"model": model_key(cfg.model), "method": method, "seed": cfg.seed}
    if cfg.method.config is None:
        return common | base
    settings = {key: value for key, value in trainer.items() if key not in WITHOUT_EFFECT and not _is_older(key, value)}
    return common | {"trainer": settings, "data": _data_identity(cfg)}


def model_key(model: DictConfig) -> str:
    """Eight hex digits that name a base model: config, content of a local folder, version of a generator."""
    source = _plain(model.source)
    if source["kind"] == "local":
        if source["path"] in (None, "???"):
            raise ValueError("A local model needs its checkpoint folder: local_model=/models/mine.")
        source["path"] = _content_key(source["path"])
    if source["kind"] == "generated":
        source["text"] = micro.key(source["seed"])
    if source["kind"] == "gguf":
        source["distribution_version"] = package_version(source["distribution"])
    return digest({"source": source, "architecture": _plain(model.get("architecture") or {})})


def digest(value: Any) -> str:
    """Eight hex digits of a JSON-like value."""
    return storage.digest(value)[:8]


def untrained_loss(cfg: DictConfig, data_key: str) -> Path:
    """Where the base model's validation loss on a prepared training set is kept; method and seed do not count."""
    arithmetic = {key: value for key, value in _plain(cfg.trainer).items() if key in ARITHMETIC}
    key = digest({"model": model_key(cfg.model), "trainer": arithmetic, "data": data_key})
    return Path(cfg.cache_dir) / "untrained" / f"{cfg.dataset.name}-{key}.json"


def lock(path: Path, blocking: bool = True) -> FileLock:
    """Held while a process works on the run directory `path`. Not `blocking`: Timeout if another one holds it."""
    return FileLock(path / ".lock", blocking=blocking)


def is_finished(path: Path) -> bool:
    """Whether `path` holds a run that came to its end: `run.json` is written last."""
    return (path / "run.json").is_file()


@functools.cache  # finished runs do not change, and parsing fifty of their configs takes five seconds
def load(path: Path) -> Run:
    """The finished run in `path`. Raises FileNotFoundError if there is none."""
    if not is_finished(path):
        raise FileNotFoundError(f"{path} is not a finished run; train it first (python -m scripts.train).")
    cfg = OmegaConf.load(path / "config.yaml")
    assert isinstance(cfg, DictConfig)
    return Run(path, cfg, storage.read_json(path / "run.json"))


def _is_older(key: str, value: Any) -> bool:
    return key in NEWER and value == NEWER[key]


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node


def _data_identity(cfg: DictConfig) -> dict[str, Any]:
    """The dataset's reader settings and the checksums of its raw files; where the files come from does not count."""
    dataset = {key: value for key, value in _plain(cfg.dataset).items() if key not in ("source", "benchmarks")}
    known = dataset | {"prepared": readers.VERSION}
    try:
        files = held(cfg.dataset.source, cfg.data, Path(cfg.cache_dir))
    except FileNotFoundError as missing:  # training will say so; a plan needs no data
        return known | {"missing": str(missing)}
    return known | {"files": fingerprint(files, Path(cfg.cache_dir))}


def _content_key(path: str | None) -> str:
    if path is None:
        raise FileNotFoundError("model=local names no folder; give local_model=path/to/checkpoint.")
    folder = Path(path)
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
