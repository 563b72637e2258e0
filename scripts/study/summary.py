"""What the finished runs of a study say: a line per row, the paper's claims, and the runs with twice the steps."""

from dataclasses import dataclass
from itertools import combinations
from math import log2

from scripts.study import intervals, plan
from scripts.study.intervals import Estimate, Parity, estimate
from scripts.study.runs import Result, Results
from scripts.study.settings import ClaimSettings, RowSettings, StudySettings


@dataclass(frozen=True)
class Line:
    """A row of the study: its rate and the grid that this was chosen from, and what its reported seeds reached.

    edge: the best rate of the grid is its lowest or highest;  recall, stored: in percent;  bits: per parameter
    """

    row: RowSettings
    parameters: int | None
    rate: float | None
    grid: list[float]
    edge: bool
    recall: Estimate
    stored: Estimate
    bits: Estimate


@dataclass(frozen=True)
class Difference:
    """What `row` has stored less what `than` has, in percent of all bits, paired by seed."""

    row: str
    than: str
    by_seed: dict[int, float]

    @property
    def estimate(self) -> Estimate:
        return estimate(list(self.by_seed.values()))


@dataclass(frozen=True)
class Convergence:
    """The difference of two rows with the study's steps and with twice as many."""

    once: Difference
    twice: Difference

    @property
    def known(self) -> bool:
        return self.once.estimate.known and self.twice.estimate.known

    @property
    def stays(self) -> bool:
        """Whether the order of the two is the same, or their intervals hold 0 both times, so that there is none."""
        once, twice = self.once.estimate, self.twice.estimate
        return once.mean * twice.mean > 0 or (once.low <= 0 <= once.high and twice.low <= 0 <= twice.high)


def lines(study: StudySettings, results: Results) -> list[Line]:
    return [_line(study, row, results) for row in study.rows]


def by_seed(study: StudySettings, row: RowSettings, results: Results, times: int = 1) -> dict[int, Result]:
    """The results of the row's finished reported seeds; with `times` the steps."""
    runs = plan.reported(study, row, results, times)
    return {run.seed: results[run] for run in runs if run in results}


def stored(study: StudySettings, result: Result) -> float:
    """How much of the facts the adapter holds, in percent of their bits."""
    bits = result["bits_per_parameter"] * result["parameters"]
    return 100 * bits / (study.facts.count * log2(study.facts.values))


def difference(study: StudySettings, row: str, than: str, results: Results, times: int = 1) -> Difference:
    """Over the seeds that both rows have."""
    one, two = (by_seed(study, study.row(label), results, times) for label in (row, than))
    seeds = sorted(one.keys() & two.keys())
    return Difference(row, than, {seed: stored(study, one[seed]) - stored(study, two[seed]) for seed in seeds})


def claims(study: StudySettings, results: Results) -> list[tuple[ClaimSettings, Difference]]:
    return [(claim, difference(study, claim.row, claim.than, results)) for claim in study.claims]


def convergence(study: StudySettings, results: Results) -> list[Convergence]:
    """Each pair of the rows that are trained with twice the steps too."""
    return [
        Convergence(difference(study, one, two, results), difference(study, one, two, results, times=2))
        for one, two in combinations(study.doubled, 2)
    ]


def parity(study: StudySettings, label: str, results: Results) -> Parity:
    """The rank of LoRA that stores as much as the row `label`, over the seeds that it and all of the curve have."""
    rows = [by_seed(study, row, results) for row in (*study.ranks, study.row(label))]
    seeds = [seed for seed in study.seeds if all(seed in row for row in rows)]
    *curve, own = [[stored(study, row[seed]) for seed in seeds] for row in rows]
    ranks = [row.rank or 0 for row in study.ranks]
    return intervals.parity(ranks, list(zip(*curve, strict=True)), own)


def _line(study: StudySettings, row: RowSettings, results: Results) -> Line:
    rate, grid = plan.chosen(study, row, results), plan.tried(study, row, results)
    counts = [result["parameters"] for run, result in results.items() if run.label == row.label]
    seeds = by_seed(study, row, results).values()
    return Line(
        row=row,
        parameters=counts[0] if counts else None,
        rate=rate,
        grid=grid,
        edge=len(grid) > 1 and rate in (grid[0], grid[-1]),
        recall=estimate([result["recall"] for result in seeds]),
        stored=estimate([stored(study, result) for result in seeds]),
        bits=estimate([result["bits_per_parameter"] for result in seeds]),
    )
