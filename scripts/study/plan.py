"""Which runs a study consists of, and in which order: the search for each row's rate, then the reported seeds."""

from collections.abc import Iterator

from scripts.study.runs import Results, Run
from scripts.study.settings import RowSettings, StudySettings

MOST_RATES = 9  # of a row; a search that still has its best rate at the edge then stops, and the report says so
DIGITS = 6  # of a rate


def ready(study: StudySettings, results: Results) -> list[Run]:
    """The runs that are not finished and can start now, in the order in which they should.

    All rows search first, then each seed is run for all rows, so that an interrupted study has as many seeds of each.
    """
    first = [row for row in study.rows if not row.last]
    last = [row for row in study.rows if row.last]
    planned = [*_wave(study, first, results), *_doubled(study, results), *_wave(study, last, results)]
    return [run for run in dict.fromkeys(planned) if run not in results]


def total(study: StudySettings, results: Results) -> int:
    """How many runs the study has, as far as one can tell: a search may still grow."""
    searching = sum(len(tried(study, row, results)) for row in study.rows) if study.search_seed is not None else 0
    return searching + len(study.seeds) * (len(study.rows) + len(study.doubled))


def tried(study: StudySettings, row: RowSettings, results: Results) -> list[float]:
    """The grid of a row's search, from the lowest: the start and its neighbours, and more where the best is an edge."""
    if study.search_seed is None:
        return [row.rate]
    low, high = -1, 1
    while True:
        rates = [_rate(study, row, exponent) for exponent in range(low, high + 1)]
        best = _best(study, row, rates, results)
        if len(rates) >= MOST_RATES or best not in (rates[0], rates[-1]):
            return rates
        low, high = (low - 1, high) if best == rates[0] else (low, high + 1)


def chosen(study: StudySettings, row: RowSettings, results: Results) -> float | None:
    """The rate that the search has found; None while it goes on."""
    if study.search_seed is None:
        return row.rate
    return _best(study, row, tried(study, row, results), results)


def search_run(study: StudySettings, row: RowSettings, rate: float) -> Run:
    assert study.search_seed is not None
    return Run(row.label, study.search_seed, rate, study.optimizer.steps)


def reported(study: StudySettings, row: RowSettings, results: Results, times: int = 1) -> list[Run]:
    """A run per reported seed, at the row's own rate, with `times` the steps; none while that is searched for."""
    rate = chosen(study, row, results)
    if rate is None:
        return []
    return [Run(row.label, seed, rate, times * study.optimizer.steps) for seed in study.seeds]


def _wave(study: StudySettings, rows: list[RowSettings], results: Results) -> Iterator[Run]:
    if study.search_seed is not None:
        for row in rows:
            yield from (search_run(study, row, rate) for rate in tried(study, row, results))
    yield from _by_seed([reported(study, row, results) for row in rows])


def _doubled(study: StudySettings, results: Results) -> Iterator[Run]:
    yield from _by_seed([reported(study, study.row(label), results, times=2) for label in study.doubled])


def _by_seed(rows: list[list[Run]]) -> Iterator[Run]:
    known = [runs for runs in rows if runs]
    for of_one_seed in zip(*known, strict=True):
        yield from of_one_seed


def _best(study: StudySettings, row: RowSettings, rates: list[float], results: Results) -> float | None:
    """The rate with the most bits per parameter on the search's seed; None while one has not been tried.

    Of equal rates the lowest. A diverged run holds no bits.
    """
    runs = {rate: search_run(study, row, rate) for rate in rates}
    if any(run not in results for run in runs.values()):
        return None
    return max(rates, key=lambda rate: results[runs[rate]]["bits_per_parameter"])


def _rate(study: StudySettings, row: RowSettings, exponent: int) -> float:
    return float(f"{row.rate * study.rate_factor**exponent:.{DIGITS}g}")
