"""Runs on this machine: some at a time, each trained and then evaluated, with one bar over all of them."""

import sys
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import partial

from joblib import cpu_count
from tqdm import tqdm

from scripts.cell.process import start_worker, worker_pool
from scripts.command import EXPECTED, print_in_any_locale, sentence
from scripts.config import compose

Work = Callable[[Sequence[str]], None]


def run(common: Sequence[str], jobs: Sequence[Sequence[str]], workers: int, evaluating: bool) -> list[str]:
    """Train one run per job, and evaluate each when it is trained if `evaluating`; returns a line per failed job.

    common: overrides that all jobs share;  jobs: the overrides of each;  workers: processes at a time
    On a GPU every step has a process of its own, since a failed one can leave the GPU's memory or state behind.
    Raises BrokenExecutor if a worker was killed; what was finished by then is kept.
    """
    first: list[tuple[Sequence[str], Work]] = [(job, train_one) for job in jobs]
    steps = len(jobs) * (2 if evaluating else 1)
    with _pool(workers) as pool, tqdm(total=steps, desc="Training", unit="run", smoothing=0.1) as bar:
        return _run(pool, deque(first), [*common], workers, evaluating, bar)


def evaluate(common: Sequence[str], jobs: Sequence[Sequence[str]], workers: int) -> list[str]:
    """Evaluate the trained runs of the jobs, each with an engine of its own; returns a line per failed job."""
    steps: list[tuple[Sequence[str], Work]] = [(job, evaluate_one) for job in jobs]
    with _pool(workers) as pool, tqdm(total=len(steps), desc="Evaluating", unit="run") as bar:
        return _run(pool, deque(steps), [*common], workers, False, bar)


def train_one(overrides: Sequence[str]) -> None:
    """Train the run that the overrides describe."""
    from scripts.cell.training import train  # torch: only where a run is trained

    train(compose(overrides))


def evaluate_one(overrides: Sequence[str]) -> None:
    """Evaluate that run on what its table shows of its training set."""
    from scripts.cell import runs
    from scripts.cell.evaluation import evaluate_runs
    from scripts.table.grid import shown_benchmarks

    cfg = compose(overrides)
    shown = shown_benchmarks(cfg)
    tested = shown if cfg.method.config is None else [name for name in shown if name in cfg.dataset.benchmarks]
    evaluate_runs(cfg, {runs.run_dir(cfg): tested})


def attempt(work: Work, overrides: Sequence[str]) -> str | None:
    """Do the work; returns the sentence of its error, or None. An unexpected error shows its traceback too."""
    try:
        work(overrides)
    except Exception as error:
        if not isinstance(error, EXPECTED):
            traceback.print_exc()
        return sentence(error)
    return None


def _run(
    pool: ProcessPoolExecutor,
    waiting: deque[tuple[Sequence[str], Work]],
    common: list[str],
    workers: int,
    evaluating: bool,
    bar: "tqdm[None]",
) -> list[str]:
    failed: list[str] = []
    running: dict[Future[str | None], tuple[Sequence[str], Work]] = {}
    while waiting or running:
        while waiting and len(running) < workers:
            job, work = waiting.popleft()
            running[pool.submit(partial(attempt, work), [*common, *job])] = job, work
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            job, work = running.pop(future)
            error = future.result()
            bar.update()
            if error is not None:
                failed.append(_line(job, work, error))
                bar.write(f"failed: {failed[-1]}", file=sys.stderr)
            elif evaluating and work is train_one:
                waiting.appendleft((job, evaluate_one))
    return failed


def _line(job: Sequence[str], work: Work, error: str) -> str:
    what = "" if work is train_one else "trained, but not evaluated: "
    return f"{' '.join(job)}: {what}{error}"


def _start(parent: int, threads: int) -> None:
    start_worker(parent, threads)
    print_in_any_locale()


def _pool(workers: int) -> ProcessPoolExecutor:
    import torch

    threads = max(1, cpu_count() // workers)
    return worker_pool(workers, _start, threads, max_tasks_per_child=1 if torch.cuda.is_available() else None)
