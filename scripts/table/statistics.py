"""The statistics under a table: errors over seeds and items together, intervals, tests, Holm's correction.

Every seed answers the same items: seeds and items are crossed. A score is a mean over both, and the model under it is

    y[s, i] = mean + seed[s] + item[i] + residual[s, i]      all three random, with mean 0

so that a mean over S seeds has the variance seed/S + item + residual/S. A score is given as its *strata*: arrays
(seeds, items) whose means add up to the score. That form holds for a mean over items (one stratum), for a mean over
tasks or languages (one stratum each) and for the average of several benchmarks, so one interval and one test serve
every cell of a table. docs/tables.md says how this form of interval was chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit
from statsmodels.stats.multitest import multipletests

LEVEL = 0.05
SMALLEST = 1e-12  # no p-value is looked for below
ROUNDING = 1e-9  # of a mean: what is shorter is no interval
MIN_STRATUM = 10  # fewer items than that within a task do not tell their own spread
MANY = 1000  # seeds; nobody trains more

Strata = list[np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and items, and the variances behind its error, in squared units of the score.

    seeds:    S, how many there are;  nonzero: items whose mean over seeds is not 0
    by_seed:  variance of the seeds' scores, seed + residual; nan if S = 1, where nothing is known of it
    residual: its part that comes from how a seed does on these items; 0 if S = 1
    item:     variance that the choice of items adds, for any number of seeds; it holds the residual if S = 1, where
        the two cannot be told apart; nan for one item
    freedom:  degrees of freedom of `item`
    """

    mean: float
    seeds: int
    nonzero: int
    by_seed: float
    residual: float
    item: float
    freedom: float

    @property
    def interval(self) -> tuple[float, float]:
        """The 95% interval: over seeds and items, or over items alone if there is one seed.

        nan for one item, and where all scores are the same: nothing then shows how they vary. None of 16 items solved
        does not mean that none would ever be.
        """
        half = self.half_width(LEVEL, self.seeds)
        return (self.mean - half, self.mean + half) if half > ROUNDING * abs(self.mean) else (np.nan, np.nan)

    def half_width(self, level: float, seeds: int) -> float:
        """Half of the interval that leaves out the mean in a share `level` of all cases, with so many seeds.

        The limits of both parts are added in quadrature (Howe, 1974; MOVER of Zou and Donner, 2008), each with its own
        quantile of t: that of few seeds is large. It is never shorter than the plain interval over seeds.
        """
        over_items = stdtrit(self.freedom, level / 2) ** 2  # quantile of t, squared
        if self.seeds == 1:
            return float(np.sqrt(over_items * self.item))
        over_seeds = stdtrit(seeds - 1, level / 2) ** 2
        seed = max(0.0, self.by_seed - self.residual)
        both = over_seeds * seed / seeds + over_items * (self.item + self.residual / seeds)
        return float(np.sqrt(max(both, over_seeds * self.by_seed / seeds)))

    @property
    def p_value(self) -> float:
        """Two-sided: the level at which the interval just reaches 0. nan where there is no interval.

        It is never below what a sign-flip test could give, which keeps very few differing items from looking certain.
        """
        if np.isnan(self.item):
            return float("nan")
        floor = min(1.0, 2.0 ** (1 - self.nonzero))
        distance = abs(self.mean)
        if self.half_width(SMALLEST, self.seeds) <= distance:
            return max(floor, SMALLEST)
        found = brentq(lambda log: self.half_width(np.exp(log), self.seeds) - distance, np.log(SMALLEST), 0.0)
        return max(floor, float(np.exp(found)))

    def seeds_to_tell(self, distance: float) -> int | None:
        """The least number of seeds whose interval is shorter than `distance` to either side; at most `MANY`.

        It takes the mean and the variances to stay what they are. None: the items alone, or one seed, do not allow it.
        """
        if self.seeds == 1 or not self.half_width(LEVEL, MANY) < distance:
            return None
        return next(count for count in range(2, MANY + 1) if self.half_width(LEVEL, count) < distance)


def strata(values: np.ndarray, tasks: np.ndarray, per_task: bool) -> Strata:
    """Split item scores into arrays whose means add up to the benchmark's score.

    values:   (seeds, n) percent, or any other unit
    tasks:    (n,) the task, subject or language of each item
    per_task: True where the score is a mean over tasks (sub-tasks, languages), False where it is a mean over items
    returns one array per task, or a single one: for a mean over items, and where a task has too few items to tell
    their spread (small limits). A single array includes the spread between tasks, so it errs to the wide side.
    """
    if not per_task:
        return [values]
    names, inverse, counts = np.unique(tasks, return_inverse=True, return_counts=True)
    if counts.min() < MIN_STRATUM:
        return [values * values.shape[1] / (len(names) * counts[inverse])]
    return [values[:, inverse == i] / len(names) for i in range(len(names))]


def estimate(parts: Strata) -> Estimate:
    """The score that the strata describe, with the analysis of variance of its seeds and items.

    parts: arrays (seeds, items), all of the same seeds. A variance that comes out negative counts as 0.
    """
    seeds = len(parts[0])
    by_seed = sum(part.mean(axis=1) for part in parts)  # (seeds,)
    means = [part.mean(axis=0) for part in parts]  # over seeds: (items,) each
    known = min(map(len, means)) > 1
    over_items = [mean.var(ddof=1) / len(mean) if known else np.nan for mean in means]
    residual = sum(_residual(part) for part in parts) if known and seeds > 1 else 0.0
    total = sum(over_items)
    return Estimate(
        mean=float(np.mean(by_seed)),
        seeds=seeds,
        nonzero=sum(int(np.count_nonzero(mean)) for mean in means),
        by_seed=float(np.var(by_seed, ddof=1)) if seeds > 1 else float("nan"),
        residual=float(residual),
        item=float("nan") if not known else max(0.0, float(total) - residual / seeds),
        freedom=_freedom(over_items, means),
    )


def _residual(part: np.ndarray) -> float:
    """Variance of a seed's mean over these items that is neither the seed's nor the items'; part: (seeds, items)."""
    seeds, items = part.shape
    left = part - part.mean(axis=1, keepdims=True) - part.mean(axis=0) + part.mean()
    return float((left**2).sum() / ((seeds - 1) * (items - 1)) / items)


def _freedom(variances: Sequence[float], means: Strata) -> float:
    """Degrees of freedom of a sum of variances over strata (Welch and Satterthwaite)."""
    squares = sum(v**2 / (len(mean) - 1) for v, mean in zip(variances, means, strict=True) if len(mean) > 1)
    return float(sum(variances) ** 2 / squares) if squares else float(max(1, min(map(len, means)) - 1))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm-adjusted p-values (family-wise error over all comparisons of one table), in the given order."""
    if not p_values:
        return np.array([])
    return np.asarray(multipletests(p_values, alpha=LEVEL, method="holm")[1])


def spread(scores: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation over seeds; the latter nan for a single seed."""
    values = np.asarray(scores, dtype=float)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else float("nan")
