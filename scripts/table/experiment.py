"""Which overrides make a table another experiment: those get a folder of their own and a note under the table."""

import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from data_prep.storage import digest

# Overrides that change no score, or only how much of the same experiment is shown. A key covers the keys below it.
# Every other override makes another experiment.
ORDINARY = {
    "profile": "names the folder of the results",
    "table": "names the file of the results",
    "benchmark": "which files of configs/benchmark are composed; the table's columns say which are used",
    "methods": "which rows are run; the others are shown as not run",
    "datasets": "which training sets are run and which columns shown; a note names them",
    "seeds": "how many repetitions; the notes name them",
    "candidates": "which ranks of a row like 4/8 are run; the notes name them",
    "limit": "how many items; the notes count them",
    "data": "where the original files are; their content is part of every key, and stand-ins name themselves",
    "runs": "read by scripts.evaluate alone",
    "dry": "nothing is trained or written",
    "gpus": "read by the plan alone",
    "search": "read by scripts.search alone",
    "capacity": "read by scripts.capacity alone",
    "open_instruct": "read by scripts.crosscheck alone",
    "metric_scripts": "read by scripts.crosscheck alone",
    "gpus_per_run": "what hardware is asked for",
    "preflight": "what is tried before",
    "workers": "how many runs are trained at a time; the same bytes",
    "launcher": "where runs are trained; the same bytes",
    "hydra": "how Hydra starts its jobs",
    "wandb": "where runs are logged",
    "runs_dir": "a place",
    "cache_dir": "a place",
    "results_dir": "a place",
    "trainer.logging_steps": "how often something is written down",
    "trainer.eval_steps": "how often the validation loss is taken",
    "trainer.save_steps": "how often a checkpoint is written",
    "evaluation.when": "the order of work",
    "engine.batch_size": "memory against speed",
    "engine.max_num_seqs": "memory against speed",
    "engine.max_loras": "memory against speed",
    "engine.gpu_memory_utilization": "memory against speed",
    "engine.cpu_kv_cache_gib": "memory against speed",
    "engine.cpu_threads": "cores against speed",
}
WHOLE = ("table", "benchmark", "model")  # ordinary as a choice (table=table2), not in what is below (table.columns=...)
LONGEST = 100  # characters of a folder's name


def is_ordinary(override: str) -> bool:
    """Whether an override leaves the experiment what it is.   override: as on the command line, or a bare key"""
    key = _key(override)
    if "@" in override.partition("=")[0]:
        return False  # it puts a config group into another section, which may be any
    if key == "model":
        return True  # `shared_overrides` sets it, to the model that plays the table's in the profile
    if key.partition(".")[0] in WHOLE and "." in key:
        return False
    return any(key == known or key.startswith(f"{known}.") for known in ORDINARY)


def changes(overrides: Sequence[str]) -> list[str]:
    """The overrides that make this another experiment than the profile's; of several for one key, the last.

    Sorted, unless one of them changes a part of another (`models={...}` and `models.7b=...`): their order matters.
    """
    last = {_key(override): override for override in overrides if not is_ordinary(override)}
    nested = any(key.startswith(f"{other}.") for key in last for other in last)
    return list(last.values()) if nested else sorted(last.values())


def variant(overrides: Sequence[str]) -> str:
    """The name of the folder for such an experiment, so that it never overwrites the profile's table; else ''.

    It is readable where it can be. A text that is long, or has signs or capitals that a file system may not keep apart,
    gets eight hex digits of its content.
    """
    found = changes(overrides)
    name = "+".join(found)
    if all(re.fullmatch(r"[a-z0-9_.=-]+", change) for change in found) and len(name) <= LONGEST:
        return name
    readable = re.sub(r"[^\w.=+-]+", "_", name, flags=re.ASCII)[:LONGEST]
    return f"{readable}-{digest(found)[:8]}"


def results_folder(cfg: DictConfig, overrides: Sequence[str]) -> Path:
    """Where the tables of these overrides are written: an experiment that they change has a folder of its own."""
    return Path(cfg.results_dir) / cfg.profile / variant(overrides)


def _key(override: str) -> str:
    """The dotted key of an override: `hydra.launcher` of `hydra/launcher=ray`."""
    return re.split(r"[=@]", override.lstrip("+~"))[0].replace("/", ".")
