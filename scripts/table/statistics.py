"""The statistics under a table: spread over seeds, bootstrap intervals over items, paired tests, Holm's correction.

A score is described by its *strata*: arrays of item contributions whose means add up to the score. That form
holds for a mean over items (one stratum), for a mean over tasks or languages (one stratum each) and for the
average of several benchmarks, so one interval and one test serve every cell of a table.
"""

from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap, monte_carlo_test
from statsmodels.stats.multitest import multipletests

RESAMPLES = 2000
PERMUTATIONS = 9999  # smallest p 2/10000: still below 0.05 after Holm over the some 60 comparisons of Table 2
LEVEL = 0.05
MIN_STRATUM = 10  # resampling fewer items than that within a task understates the spread
BATCH = 500  # resamples held in memory at once

Strata = list[np.ndarray]


def strata(values: np.ndarray, tasks: np.ndarray, per_task: bool) -> Strata:
    """Split item scores into arrays whose means add up to the benchmark's score.

    values:   (n,) percent, one per item (already averaged over seeds)
    tasks:    (n,) the task, subject or language of each item
    per_task: True where the score is a mean over tasks (sub-tasks, languages), False where it is a mean over items
    returns one array per task, or a single one: for a mean over items, and where a task has too few items to be
    resampled alone (small limits). A single array includes the spread between tasks, so it errs to the wide side.
    """
    if not per_task:
        return [values]
    names, inverse, counts = np.unique(tasks, return_inverse=True, return_counts=True)
    if counts.min() < MIN_STRATUM:
        return [values * len(values) / (len(names) * counts[inverse])]
    return [values[inverse == i] / len(names) for i in range(len(names))]


def score(parts: Strata) -> float:
    """The score that the strata describe, in percent."""
    return float(sum(part.mean() for part in parts))


def interval(parts: Strata) -> tuple[float, float]:
    """95% percentile bootstrap interval over items, stratified; (nan, nan) where a stratum has a single item."""
    if min(map(len, parts)) < 2:
        return float("nan"), float("nan")
    result = bootstrap(
        parts,
        lambda *samples, axis: sum(sample.mean(axis=axis) for sample in samples),
        n_resamples=RESAMPLES,
        batch=BATCH,
        method="percentile",
        confidence_level=1 - LEVEL,
        rng=np.random.default_rng(0),
    )
    low, high = result.confidence_interval
    return float(low), float(high)


def p_value(differences: Strata) -> float:
    """Two-sided sign-flip permutation test of "the paired differences are symmetric about 0".

    Chosen over McNemar (needs one binary outcome per item: not F1, not pass@1 of 20 samples, not a mean over seeds)
    and over Wilcoxon (tests ranks, while the table reports means, weighted by task): it assumes nothing but the pairing
    and tests the very number that is printed. Items without a difference cannot change the sum and are left out.
    """
    shares = np.concatenate([part / len(part) for part in differences])
    shares = shares[shares != 0]
    if len(shares) < 2:
        return 1.0  # one difference: both signs are equally extreme
    shares = shares / np.abs(shares).max()  # right or wrong becomes exactly -1 and 1, so that equal sums compare equal
    rng = np.random.default_rng(0)
    result = monte_carlo_test(
        shares,
        lambda size: shares * (rng.integers(0, 2, size, dtype=np.int8) * 2 - 1),
        lambda sample, axis: sample.sum(axis=axis),
        vectorized=True,
        n_resamples=PERMUTATIONS,
        batch=BATCH,
    )
    return float(min(1.0, result.pvalue))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm-adjusted p-values (family-wise error over all comparisons of one table), in the given order."""
    if not p_values:
        return np.array([])
    return np.asarray(multipletests(p_values, alpha=LEVEL, method="holm")[1])


def spread(scores: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation over seeds; the latter nan for a single seed."""
    values = np.asarray(scores, dtype=float)
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else float("nan")
