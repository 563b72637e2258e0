"""Trains the missing runs of a study, some at a time, each into a file of its own: it can be stopped at any time."""

import functools
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait

from tqdm import tqdm

from scripts.cell.process import start_worker, worker_pool
from scripts.study import plan
from scripts.study.runs import Result, Run, Store


def finished(store: Store, known: Mapping[Run, Result] | None = None) -> dict[Run, Result]:
    """The results on disk of the study's runs, besides those that are known.

    Which runs a study has depends on the results of its searches, so it asks again until nothing is found.
    """
    results = dict(known or {})
    while found := {run: result for run in plan.ready(store.study, results) if (result := store.load(run))}:
        results |= found
    return results


def produce(store: Store, workers: int) -> dict[Run, Result]:
    """Train what is missing, some runs at a time with one thread each; returns the results of all runs.

    Raises what a run raises, when those beside it have ended; what is finished by then is kept.
    """
    results = finished(store)
    pool = worker_pool(workers, start_worker, 1)
    with pool, tqdm(desc="Capacity", unit="run", initial=len(results), mininterval=2, smoothing=0.1) as bar:
        running: dict[Future[Result], Run] = {}
        while waiting := plan.ready(store.study, results):
            bar.total = plan.total(store.study, results)
            for run in [run for run in waiting if run not in running.values()][: workers - len(running)]:
                running[pool.submit(train_one, tuple(store.overrides), run)] = run
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            results = finished(store, results | {running.pop(future): future.result() for future in done})
            bar.update(len(results) - bar.n)
    return results


def train_one(overrides: tuple[str, ...], run: Run) -> Result:
    """Train one run and write its result, in a process of its own."""
    import torch  # after `start_worker` has said how many threads it gets
    from transformers.utils.logging import disable_progress_bar

    from scripts.study.training import train

    torch.set_num_threads(1)
    disable_progress_bar()  # one for each time the base model is loaded
    store = _store(overrides)
    result = train(store.config(run), store.study, run)
    store.save(run, result)
    return result


@functools.cache  # Hydra takes a fifth of a second for each row
def _store(overrides: tuple[str, ...]) -> Store:
    return Store(overrides)
