"""Which of the paper's claims hold: differences of averages, with intervals, from finished tables."""

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

from scripts.config import compose
from scripts.table import collect, grid, schema, statistics
from scripts.table.produce import evaluate_missing
from scripts.table.summary import AVERAGE, Entry, better, difference, same_items, strata


@dataclass(frozen=True)
class Claim:
    """A claim of a table's yaml: `row` scores higher or lower than `than`, or reaches it (is not lower).

    row, than: label and rank of rows of the table
    """

    text: str
    row: tuple[str, str]
    relation: str
    than: tuple[str, str]


@dataclass(frozen=True)
class Outcome:
    """A difference of averages in points: its 95% bootstrap interval over items, and its value for each seed."""

    claim: Claim
    low: float
    high: float
    per_seed: Sequence[float]

    @property
    def verdict(self) -> str:
        """What the interval says: a difference is one if the interval leaves out 0."""
        signs = {"higher": self.low > 0, "lower": self.high < 0, "reaches": self.low > 0}
        if signs[self.claim.relation]:
            return "holds"
        against = self.low > 0 if self.claim.relation == "lower" else self.high < 0
        if against:
            return "does not hold"
        return "no difference shown"


def compare(claim: Claim, row: Entry, than: Entry, cfg: DictConfig, per_task: set[str]) -> Outcome:
    """The outcome of a claim from what its two rows reached on the same items and seeds.

    Raises ValueError if the two were evaluated on different items or with different seeds.
    """
    if not same_items(row.items, than.items) or list(row.scores.index) != list(than.scores.index):
        raise ValueError(f"{row.method} and {than.method} have other items or seeds; run both rows with the same.")
    differences = {name: difference(row.items[name], than.items[name]) for name in row.items}
    low, high = statistics.interval(strata(differences, AVERAGE, cfg.table.columns, per_task))
    return Outcome(claim, low, high, list((row.scores - than.scores).mean(axis=1)))


def render_claims(outcomes: Sequence[Outcome], profile: str, seeds: Sequence[int]) -> str:
    """A Markdown table, a line per claim."""
    lines = [
        "| Claim | Compared | Difference | 95% interval | By seed | Verdict |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for outcome in outcomes:
        claim, mean = outcome.claim, sum(outcome.per_seed) / len(outcome.per_seed)
        compared = f"{' '.join(claim.row)} against {' '.join(claim.than)}"
        seed_by_seed = ", ".join(f"{value:+.1f}" for value in outcome.per_seed)
        interval = f"{outcome.low:+.2f} to {outcome.high:+.2f}"
        lines.append(f"| {claim.text} | {compared} | {mean:+.2f} | {interval} | {seed_by_seed} | {outcome.verdict} |")
    heading = f"# The paper's claims in the profile {profile}"
    says = (
        f"Differences of the average over all columns, in points, over seeds {', '.join(map(str, seeds))}. The "
        "interval is a bootstrap over items; it leaves out how the seeds vary, which the column beside it shows."
    )
    return "\n".join([heading, "", says, "", *lines, ""])


def outcomes_of(overrides: Sequence[str]) -> list[Outcome]:
    """The outcomes of the claims on one table, whose cells are all finished."""
    cfg = compose(overrides)
    _refuse_left_out(cfg)
    table = cfg.table.name
    cells = grid.cells(cfg, overrides)
    missing = grid.untrained(cells)
    if missing:
        raise FileNotFoundError(f"{table} misses {len(missing)} cells, the first {missing[0].path}; run make {table}.")
    found = collect.results(cells, evaluate_missing(cfg, cells))
    entries, per_task = collect.entries(found, cfg.table.columns), collect.per_task(found)
    candidates = {(row.label, row.rank or ""): [entries[name] for name in row.methods] for row in grid.rows(cfg)}
    pairs = [(claim, better(candidates[claim.row]), better(candidates[claim.than])) for claim in claims(cfg)]
    return [compare(*pair, cfg, per_task) for pair in pairs]


def claims(cfg: DictConfig) -> list[Claim]:
    """The claims that the table's yaml makes. Raises ValueError for a wrong key, or a row that the table lacks."""
    schema.check(cfg.table)
    rows = {(row.label, row.rank or "") for row in grid.rows(cfg)}
    found = [Claim(c.text, tuple(c.row), c.relation, tuple(c.than)) for c in cfg.table.get("claims", [])]
    for claim in found:
        for row in (claim.row, claim.than):
            if row not in rows:
                raise ValueError(f"{_where(cfg, claim)}: the table has no row {' '.join(row)}.")
    return found


def _refuse_left_out(cfg: DictConfig) -> None:
    methods = {(row.label, row.rank or ""): row.methods for row in grid.rows(cfg)}
    for claim in claims(cfg):
        for row in (claim.row, claim.than):
            if not methods[row]:
                left_out = f"the row {' '.join(row)} is left out by methods={list(cfg.methods)}"
                raise ValueError(f"{_where(cfg, claim)}: {left_out}; run all rows that the claims name.")


def _where(cfg: DictConfig, claim: Claim) -> str:
    return f"Table '{cfg.table.name}', claim '{claim.text}'"
