"""Which of the paper's claims hold: differences between rows of finished tables, with intervals and verdicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan

import numpy as np
from omegaconf import DictConfig

from scripts.config import compose, model_of_table
from scripts.markdown import pipe_table
from scripts.table import collect, grid, schema, statistics
from scripts.table.produce import evaluate_missing
from scripts.table.render import NAMES, ends, number
from scripts.table.summary import AVERAGE, LOSS, Entry, better, comparable, difference, strata

MEASURES = (AVERAGE, LOSS)
JUDGED = (
    "A claim holds, or does not hold, if the whole interval says so. A row reaches another if it falls short by less "
    "than the margin that the table's yaml gives."
)


@dataclass(frozen=True)
class Claim:
    """A claim of a table's yaml: `row` does better (higher) or worse (lower) than `than`, or reaches it.

    row, than: label and rank of rows of the table
    margin: by measure, what `row` may fall short of `than` and still reaches it; empty for the other relations
    """

    text: str
    row: tuple[str, str]
    relation: str
    than: tuple[str, str]
    margin: Mapping[str, float]


@dataclass(frozen=True)
class Outcome:
    """What the two rows of a claim differ by in one measure: AVERAGE, in points, or LOSS, in nats per labelled token.

    found: the difference, `row` less `than`, with its error; None where not both rows have the measure
    per_seed: the difference, by seed
    """

    claim: Claim
    measure: str
    found: statistics.Estimate | None
    per_seed: Mapping[int, float]

    @property
    def verdict(self) -> str:
        """`holds` or `does not hold` if the whole 95% interval says so, else `cannot tell`, and what it would take.

        `higher` needs a gain above 0, `lower` a loss of score, and `reaches` a gain above minus the margin. Of one seed
        nothing follows for the method: other seeds may differ by more than any two rows.
        """
        if self.found is None:
            return "-"
        if self.found.seeds == 1:
            return "cannot tell: one seed says nothing of others"
        if self.found.nonzero == 0:  # as where no row solves any item
            return "cannot tell: the two rows differ on no item"
        if np.isnan(self.found.interval).any():
            return "cannot tell: the two rows differ by the same on every item"
        sign = -1 if (self.measure == LOSS) != (self.claim.relation == "lower") else 1
        margin = self.claim.margin.get(self.measure, 0.0)
        low, high = sorted(sign * end + margin for end in self.found.interval)
        if low > 0:
            return "holds"
        if high < 0:
            return "does not hold"
        seeds = self.found.seeds_to_tell(abs(sign * self.found.mean + margin))
        if seeds is None:
            return f"cannot tell: not even {statistics.MANY:,} seeds would, it needs more items"
        return f"cannot tell: it would take some {seeds} seeds"


def compare(claim: Claim, row: Entry, than: Entry, per_task: set[str]) -> list[Outcome]:
    """The outcomes of a claim, one per measure, from what its two rows reached on the same items and seeds.

    Raises ValueError if the two were evaluated on different items or with different seeds.
    """
    if not comparable(row, than, AVERAGE):
        raise ValueError(f"{row.method} and {than.method} have other items or seeds; run both rows with the same.")
    return [_outcome(claim, measure, row, than, per_task) for measure in MEASURES]


def _outcome(claim: Claim, measure: str, row: Entry, than: Entry, per_task: set[str]) -> Outcome:
    if not comparable(row, than, measure):
        return Outcome(claim, measure, None, {})
    parts = strata(difference(row, than, measure), measure, row.averaged, per_task)
    by_seed = row.by_seed(measure) - than.by_seed(measure)
    return Outcome(claim, measure, statistics.estimate(parts), by_seed.to_dict())


def render_claims(outcomes: Sequence[Outcome], profile: str, seeds: Sequence[int], no_verdicts: str | None) -> str:
    """A Markdown table, a line per claim and measure.

    no_verdicts: why this profile cannot judge the claims; None: it can
    """
    head = ["Claim", "Compared", "Measure", "Difference", "95% interval", "By seed"]
    head += [] if no_verdicts else ["Verdict"]
    table = pipe_table(head, (_line(outcome, seeds, not no_verdicts) for outcome in outcomes))
    judged = f"No verdicts: {no_verdicts}" if no_verdicts else JUDGED
    return "\n".join([f"# The paper's claims in the profile {profile}", "", says(seeds), "", judged, "", table, ""])


def says(seeds: Sequence[int]) -> str:
    """What the numbers of a page of claims are."""
    over = "seeds and items together" if len(seeds) > 1 else "items alone: one seed says nothing of others"
    return (
        f"Differences over seeds {', '.join(map(str, seeds))}, paired by seed and item: of the average, in points, and "
        f"of the validation loss, in nats per labelled token, where lower is better. Intervals are over {over}, "
        "not adjusted for the number of claims. A claim about a row that was not run shows -."
    )


def _line(outcome: Outcome, seeds: Sequence[int], judged: bool) -> list[str]:
    claim, found, measure = outcome.claim, outcome.found, outcome.measure
    compared = f"{' '.join(claim.row)} against {' '.join(claim.than)}"
    cells = [claim.text, compared, NAMES[measure], "-", "-", "-"]
    if found is not None:
        by_seed = ", ".join(number(outcome.per_seed.get(seed, nan), measure, "+") for seed in seeds)
        cells[3:] = [number(found.mean, measure, "+"), ends(*found.interval, measure), by_seed]
    return [*cells, outcome.verdict] if judged else cells


def outcomes_of(overrides: Sequence[str]) -> list[Outcome]:
    """The outcomes of the claims on one table, whose cells are all finished; nothing is found of rows that did not run.

    overrides: `table=...` among them, and no model: the profile gives each table its own
    Raises FileNotFoundError if a cell of the rows that run is not finished.
    """
    overrides = [*overrides, model_of_table(compose(overrides))]
    cfg = compose(overrides)
    table = cfg.table.name
    cells = grid.cells(cfg, overrides)
    missing = grid.untrained(cells)
    if missing:
        raise FileNotFoundError(f"{table} misses {len(missing)} cells, the first {missing[0].path}; run make {table}.")
    found = collect.results(cells, evaluate_missing(cfg, cells))
    entries, per_task = collect.entries(found, cfg), collect.per_task(found)
    ran = {(row.label, row.rank or ""): better([entries[name] for name in row.methods]) for row in _ran(cfg)}
    return [outcome for claim in claims(cfg) for outcome in _judged(claim, ran, per_task)]


def _ran(cfg: DictConfig) -> list[grid.Row]:
    return [row for row in grid.rows(cfg) if row.methods]


def _judged(claim: Claim, ran: Mapping[tuple[str, str], Entry], per_task: set[str]) -> list[Outcome]:
    if claim.row in ran and claim.than in ran:
        return compare(claim, ran[claim.row], ran[claim.than], per_task)
    return [Outcome(claim, measure, None, {}) for measure in MEASURES]


def claims(cfg: DictConfig) -> list[Claim]:
    """The claims that the table's yaml makes.

    Raises ValueError for a wrong key, a row that the table lacks, or a margin that is missing or has no meaning.
    """
    schema.check(cfg.table)
    rows = {(row.label, row.rank or "") for row in grid.rows(cfg)}
    found = [
        Claim(c.text, tuple(c.row), c.relation, tuple(c.than), dict(c.get("margin") or {}))
        for c in cfg.table.get("claims", [])
    ]
    for claim in found:
        for row in (claim.row, claim.than):
            if row not in rows:
                raise ValueError(f"{_where(cfg, claim)}: the table has no row {' '.join(row)}.")
        _check_margin(cfg, claim)
    return found


def _check_margin(cfg: DictConfig, claim: Claim) -> None:
    wanted = set(MEASURES) if claim.relation == "reaches" else set()
    if claim.margin.keys() != wanted:
        example = f"margin: {{{AVERAGE}: 0.5, {LOSS}: 0.01}}"
        need = f"needs {example}, what it may fall short by" if wanted else "takes no margin; only `reaches` does"
        raise ValueError(f"{_where(cfg, claim)}: the relation `{claim.relation}` {need}.")


def _where(cfg: DictConfig, claim: Claim) -> str:
    return f"Table '{cfg.table.name}', claim '{claim.text}'"
