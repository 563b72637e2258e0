"""The configs: where they are, what there is, and how they are composed."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"


def compose(overrides: Sequence[str]) -> DictConfig:
    """The root config with Hydra overrides applied, as every entry point sees it."""
    started = GlobalHydra.instance().is_initialized()
    with nullcontext() if started else hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return hydra.compose("config", list(overrides))


def choices(group: str) -> list[str]:
    """The files of a config group, sorted; `choices("method")` lists every known method."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def shared_overrides(cfg: DictConfig) -> list[str]:
    """The overrides of this command line, with the model that plays the one of the table in this profile."""
    given = HydraConfig.get().overrides.task
    return [*(o for o in given if not o.startswith("model=")), f"model={cfg.models[cfg.table.model]}"]
