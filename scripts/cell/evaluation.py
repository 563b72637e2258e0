"""Evaluation of finished runs that share a base model: what the config names becomes jobs for one engine."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from data_prep.sources import fetched
from data_prep.storage import full_disk_named, read_json
from eval import benchmarks, weights
from eval.engines import Engine, resolve_dtype
from eval.session import Benchmark, Conditions, evaluate
from scripts.cell import runs
from scripts.cell.served import job


def evaluate_runs(cfg: DictConfig, wanted: Mapping[Path, Sequence[str]]) -> dict[Path, list[Path]]:
    """Evaluate runs on benchmarks, as far as that is not done; returns the result folders by run.

    What W&B has not seen yet is put on the W&B runs of the trainings.

    wanted: run directory -> benchmark names
    Raises FileNotFoundError for an unfinished run; ValueError if the runs differ in their base model, or for a
    benchmark that `benchmark=[...]` leaves out.
    """
    found = {path: runs.load(path) for path in wanted}
    from scripts.cell import base_model, tracking  # they import torch and PEFT, which takes 10 s

    _check_shared_base(cfg, list(found.values()))
    names = sorted({name for chosen in wanted.values() for name in chosen})
    loaded = {name: load_benchmark(cfg, name) for name in names}
    first = next(iter(found.values())).cfg
    checkpoint = base_model.dequantized_checkpoint(first.model, first.trainer, cfg.cache_dir)
    jobs = [job(run, wanted[path], cfg.engine.name) for path, run in found.items()]
    adapters = [each.adapter for each in jobs if each.adapter and weights.present(each.adapter)]
    engine = {"name": cfg.engine.name, "dtype": resolve_dtype(cfg.engine.dtype), "context": cfg.engine.max_model_len}
    conditions = Conditions(checkpoint.name, engine, cfg.evaluation.variant, cfg.limit)
    tokenizer = base_model.load_tokenizer(first.model, cfg.cache_dir)
    with full_disk_named(Path(cfg.runs_dir)), ExitStack() as stack:

        def start() -> Engine:
            return stack.enter_context(closing(instantiate(cfg.engine, model=checkpoint, adapters=adapters)))

        folders = iter(evaluate(jobs, loaded, conditions, tokenizer, start))
        for run in found.values():
            tracking.log_evaluation(run)
    return {each.run_dir: [next(folders) for _ in each.benchmarks] for each in jobs}


def load_benchmark(cfg: DictConfig, name: str) -> Benchmark:
    """A benchmark's resolved config and raw data. Raises ValueError if it is not among `benchmark=[...]`."""
    if name not in cfg.benchmark:
        raise ValueError(f"Benchmark '{name}' is not among benchmark=[{','.join(cfg.benchmark)}]; add it there.")
    config: Any = OmegaConf.to_container(cfg.benchmark[name], resolve=True)
    files = fetched(cfg.benchmark[name].source, cfg.data, Path(cfg.cache_dir))
    return Benchmark(config, benchmarks.load(config, files))


def scores(folder: Path) -> dict[str, float]:
    """Percent per table column of a result folder."""
    return dict(read_json(folder / "metrics.json")["scores"])


def _check_shared_base(cfg: DictConfig, found: Sequence[runs.Run]) -> None:
    """Raises ValueError if the runs differ in their base model, which need not be there yet."""
    from scripts.cell.base_model import folders

    bases = {folders(run.cfg.model, run.cfg.trainer, cfg.cache_dir)["dequantized"]: run.path for run in found}
    if len(bases) != 1:
        several = ", ".join(f"{path.name} ({base.name})" for base, path in bases.items())
        raise ValueError(
            f"Runs of one evaluation must share their base model, got {several}; evaluate each on its own."
        )
