"""All that one command compares: the evaluated runs it names, and the training sets that are on this machine."""

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig

from data_prep.sources import locate
from scripts.cell import runs
from scripts.cell.evaluation import load_benchmark
from scripts.original import theirs
from scripts.original.compared import Compared, compared
from scripts.original.ours import Trial


def evaluations(paths: Sequence[str]) -> dict[str, dict[Path, Path]]:
    """`{benchmark: {run: folder}}`: the latest evaluation of each run on each benchmark that open-instruct has.

    Raises FileNotFoundError for a run that is not finished, or has no such evaluation.
    """
    found: dict[str, dict[Path, Path]] = defaultdict(dict)
    for path in map(Path, paths):
        runs.load(path)
        finished = sorted(path.glob("eval/*/metrics.json"), key=lambda file: file.stat().st_mtime)
        latest = {json.loads(file.read_text(encoding="utf-8"))["benchmark"]: file.parent for file in finished}
        shared = {name: folder for name, folder in latest.items() if theirs.has(name)}
        if not shared:
            raise FileNotFoundError(
                f"{path} holds no predictions for a benchmark of open-instruct's; run: python -m scripts.evaluate "
                f"runs=[{path}]"
            )
        for name, folder in shared.items():
            found[name][path] = folder
    return found


def compare(
    cfg: DictConfig, found: Mapping[str, Mapping[Path, Path]], checkout: Path, metrics: Path | None, work: Path
) -> list[Compared]:
    """Compare evaluations, benchmark by benchmark. What open-instruct's scripts write is left in `work`.

    Raises ValueError, before any script runs, if an evaluation was made with other data or settings than these; and as
    `theirs.answered`.
    """
    from scripts.cell.base_model import load_tokenizer  # it imports torch

    shutil.rmtree(work, ignore_errors=True)
    trials: dict[str, list[Trial]] = {}
    for name, folders in sorted(found.items()):
        benchmark = load_benchmark(cfg, name)
        tokenizers = {run: load_tokenizer(runs.load(run).cfg.model, cfg.cache_dir) for run in folders}
        trials[name] = [Trial(run, folder, benchmark, tokenizers[run]) for run, folder in folders.items()]
        for trial in trials[name]:
            trial.check()
    return [each for name in trials for each in _compared(trials[name], cfg, checkout, metrics, work / name)]


def _compared(
    trials: Sequence[Trial], cfg: DictConfig, checkout: Path, metrics: Path | None, work: Path
) -> list[Compared]:
    root = locate(cfg.benchmark[trials[0].benchmark.name].source, cfg.data, Path(cfg.cache_dir)).resolve()
    answered = theirs.answered(trials, root, checkout, metrics, work)
    return [compared(trial, each) for trial, each in zip(trials, answered, strict=True)]
