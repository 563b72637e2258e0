"""Means with their intervals over seeds, differences paired by seed, and the rank of LoRA that stores as much."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan

import numpy as np
import numpy.typing as npt
from scipy import stats
from statsmodels.stats.power import TTestPower

LEVEL = 0.95
POWER = 0.8
MOST_SEEDS = 1000  # beyond that a difference is none
FULL = 99.0  # percent of all bits: what holds so much holds all facts, and does not tell how many more it would hold


@dataclass(frozen=True)
class Estimate:
    """A mean over `count` seeds and its 95% interval; its ends are nan if there is none, all is nan without seeds."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def known(self) -> bool:
        """Whether it has an interval."""
        return not isnan(self.low)


@dataclass(frozen=True)
class Parity(Estimate):
    """A rank of LoRA, the geometric mean over seeds, of which some are bounds alone.

    above: seeds that store as much as the whole curve, or all facts: at least their rank;  below: those under the
        curve: at most their rank
    """

    above: int
    below: int


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and Student's t interval. Seeds are few: a percentile bootstrap of five covers about 82%.

    No interval for one seed, nor for seeds that all give the same value (a full row, a rank beyond the curve): nothing
    then shows how they vary.
    """
    if len(set(values)) < 2:
        return Estimate(values[0] if values else nan, nan, nan, len(values))
    numbers = np.asarray(values, dtype=float)
    half = stats.t.ppf((1 + LEVEL) / 2, len(numbers) - 1) * stats.sem(numbers)
    return Estimate(float(numbers.mean()), float(numbers.mean() - half), float(numbers.mean() + half), len(numbers))


def verdict(difference: Estimate) -> str:
    """What an interval says of the claim that the difference is positive."""
    if difference.low > 0:
        return "holds"
    if difference.high < 0:
        return "does not hold"
    return "cannot tell"


def seeds_needed(differences: Sequence[float]) -> int | None:
    """How many seeds would show this mean difference, with this spread, at 5% and 80% power; None for over a thousand.

    At least two differences that are not all equal.
    """
    numbers = np.asarray(differences, dtype=float)
    effect = abs(numbers.mean()) / numbers.std(ddof=1)
    power = TTestPower().power
    return next((n for n in range(2, MOST_SEEDS + 1) if power(effect, n, 1 - LEVEL) >= POWER), None)


def equal_rank(ranks: Sequence[int], stored: Sequence[float], target: float) -> float:
    """The lowest rank at which LoRA stores `target`, between measured ranks in a line over the logarithm of the rank.

    ranks: rising;  stored: what LoRA stores at each, in percent of all bits, made to rise where it falls. Ranks that
        add nothing count for nothing, and what is above `FULL` counts as full: where LoRA 8 holds all facts, a row that
        does too equals LoRA 8 and not LoRA 64.
    returns the lowest or the highest rank for a target outside the curve: at most, or at least, so much
    """
    curve, full = _risen(stored), min(target, FULL)
    logs = np.log2(ranks)
    above = int(np.searchsorted(curve, full))  # the first rank that stores as much
    if above in (0, len(curve)):
        return float(ranks[min(above, len(curve) - 1)])
    beside = slice(above - 1, above + 1)
    return float(2 ** np.interp(full, curve[beside], logs[beside]))


def parity(ranks: Sequence[int], stored: Sequence[Sequence[float]], targets: Sequence[float]) -> Parity:
    """The rank of LoRA that equals a method: each seed on the curve of that seed, then their geometric mean.

    stored: for each seed, what LoRA stores at each rank;  targets: what the method stores, by seed; in percent
    The interval is a t interval of the logarithms. A seed outside the curve counts as its end.
    """
    logs = [np.log2(equal_rank(ranks, curve, target)) for curve, target in zip(stored, targets, strict=True)]
    found = estimate([float(log) for log in logs])
    ends = [(_risen(curve)[[0, -1]], min(target, FULL)) for curve, target in zip(stored, targets, strict=True)]
    above = sum(target >= highest for (_, highest), target in ends)
    below = sum(target < lowest for (lowest, _), target in ends)
    return Parity(2**found.mean, 2**found.low, 2**found.high, found.count, int(above), int(below))


def _risen(stored: Sequence[float]) -> npt.NDArray[np.float64]:
    """A curve over ranks that nowhere falls, and ends at `FULL`."""
    return np.minimum(np.maximum.accumulate(np.asarray(stored, dtype=float)), FULL)
