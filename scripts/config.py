"""The configs: where they are, what there is to choose, and how they are composed."""

import difflib
import functools
import json
import os
import pickle
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
import omegaconf._utils
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from yaml.constructor import SafeConstructor
from yaml.cyaml import CParser
from yaml.resolver import Resolver

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = Path(os.environ.get("MOS_CONFIGS") or ROOT / "configs").resolve()

# One of these on the command line would have no effect. A table, a search and the claims choose them for each cell.
MEANT = {
    "model": "each cell has its own; use models={{{role}:{value}}}",
    "method": "each cell has its own; use methods=[{value}] (in a search: search.method={value})",
    "dataset": "each cell has its own; use table.datasets=[{value}] (in a search: search.datasets=[{value}])",
    "seed": "each cell has its own; use seeds=[{value}]",
}
# What evaluates runs that exist takes these from each run.
OF_A_RUN = dict.fromkeys(("model", "method", "dataset", "seed"), "each run has its own; choose runs by runs=[...]")


def config_json(*, _parent_: DictConfig) -> DictConfig | None:
    """`${config_json:}` in configs/model/local.yaml: the config.json of `source.path`; None where there is none."""
    folder = _parent_.source.get("path") if not OmegaConf.is_missing(_parent_.source, "path") else None
    path = Path(folder or "", "config.json")
    if folder is None or not path.is_file():
        return None  # whoever needs it says so
    return OmegaConf.create(json.loads(path.read_text(encoding="utf-8")))


OmegaConf.register_new_resolver("config_json", config_json, replace=True)


class FastLoader(CParser, omegaconf._utils.get_yaml_loader()):  # type: ignore[misc]
    """OmegaConf's loader with the parser of libyaml, by which a config of this size is there in half the time."""

    def __init__(self, stream: object) -> None:
        CParser.__init__(self, stream)
        SafeConstructor.__init__(self)
        Resolver.__init__(self)


omegaconf._utils.get_yaml_loader = lambda: FastLoader


def compose(overrides: Sequence[str]) -> DictConfig:
    """The root config with Hydra overrides applied, as every entry point sees it.

    With `datasets`, the table and the search have these training sets alone, and the table the columns that they train
    for. Raises ValueError for one that the table lacks.
    """
    parsed = OverridesParser.create().parse_overrides(completed(overrides))
    chosen = tuple(str(override.input_line) for override in parsed if _chooses(override))
    cfg: DictConfig = pickle.loads(_composed(chosen, _written()))  # seven times as fast as a deep copy
    ConfigLoaderImpl._apply_overrides_to_config([override for override in parsed if not _chooses(override)], cfg)
    return cfg if cfg.datasets is None else _narrowed(cfg)


def _narrowed(cfg: DictConfig) -> DictConfig:
    for name in cfg.datasets:
        if name not in cfg.table.datasets:
            raise ValueError(f"datasets: {unknown(f'training set of {cfg.table.name}', name, cfg.table.datasets)}")
    kept = {benchmark for name in cfg.datasets for benchmark in _trained_for(name)}
    known = {name: benchmark for name, benchmark in cfg.benchmark.items() if isinstance(benchmark, DictConfig)}
    left_out = {column for name, own in known.items() if name not in kept for column in own.get("columns") or {}}
    cfg.table.columns = [column for column in cfg.table.columns if column not in left_out]
    cfg.table.datasets = cfg.search.datasets = cfg.datasets
    return cfg


def _trained_for(dataset: str) -> list[str]:
    path = CONFIGS / "dataset" / f"{dataset}.yaml"
    own: Any = OmegaConf.load(path) if path.is_file() else {}  # whoever needs the file says that it is not there
    return list(own.get("benchmarks") or [])


def _chooses(override: Override) -> bool:
    """Whether Hydra needs it to find the files. The others set values, in what the files give together."""
    group = (CONFIGS / override.key_or_group).is_dir() and not isinstance(override.value(), dict)
    return group or override.is_hydra_override() or override.is_sweep_override()


@functools.lru_cache(maxsize=512)  # Hydra takes half a second, values are set in hundredths of one
def _composed(chosen: tuple[str, ...], written: tuple[tuple[Path, int], ...]) -> bytes:
    """The pickled config of the chosen files.  written: `_written()`, so that a changed file is read again"""
    started = GlobalHydra.instance().is_initialized()
    with nullcontext() if started else hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return pickle.dumps(hydra.compose("config", list(chosen)))


def _written() -> tuple[tuple[Path, int], ...]:
    """Every config file and when it was last written, in nanoseconds."""
    return tuple((path, path.stat().st_mtime_ns) for path in sorted(CONFIGS.rglob("*.yaml")))


def completed(overrides: Sequence[str]) -> list[str]:
    """The overrides, and every file of configs/benchmark unless they choose: a new benchmark needs no list to enter."""
    chosen = any(override.startswith("benchmark=") for override in overrides)
    return list(overrides) if chosen else [*overrides, _every_benchmark()]


def choices(group: str) -> list[str]:
    """The files of a config group, sorted; `choices("method")` lists every known method."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The sentence that refuses a name: with the nearest known one, and all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"Unknown {kind} '{name}'.{hint} Known: {', '.join(known)}."


def shared_overrides(cfg: DictConfig) -> list[str]:
    """The overrides that all cells of this command share, and the model that the profile gives the table.

    Raises ValueError for an override that each cell chooses for itself, naming the key that is meant.
    """
    refuse_lost(given(), MEANT, str(cfg.table.model))
    return [*given(), model_of_table(cfg)]


def model_of_table(cfg: DictConfig) -> str:
    """The override by which the profile gives the table its model. Raises ValueError for one that it does not have."""
    role = str(cfg.table.model)
    if role not in cfg.models:
        raise ValueError(unknown(f"model of table '{cfg.table.name}'", role, cfg.models))
    return f"model={cfg.models[role]}"


def given() -> list[str]:
    """The overrides of this command line, without the one that `completed` adds."""
    return [override for override in HydraConfig.get().overrides.task if override != _every_benchmark()]


def refuse_lost(overrides: Sequence[str], meant: Mapping[str, str], role: str = "") -> None:
    """Raise ValueError for an override that a command would replace by its own choices.

    meant: key -> why it is replaced, and what to write instead;  role: of the table's model in the profile, e.g. `7b`
    """
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key in meant:
            raise ValueError(f"{override} would have no effect: {meant[key].format(role=role, value=value)}.")


def _every_benchmark() -> str:
    return f"benchmark=[{','.join(choices('benchmark'))}]"
