"""What the serving bench measures on, and how two ways of serving are compared: in turns, as a ratio of neighbours."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from scripts.measure.serving_engine import Engine, Settings
from scripts.measure.serving_inputs import Case, prepared
from scripts.measure.training import Ratio, summary

RESAMPLED = 1000  # times, for the interval of a percentile


@dataclass(frozen=True)
class Sizes:
    """The sizes of a bench.

    small: a base where reading and bookkeeping are measured; with r = 64 it takes longer to read an exported adapter
    than to answer, as on a GPU. large: one where the model's own products have to count; an exported adapter is 0.6%
    of its weights, as one of rank 16 is of LLaMA2-7B's. Of each the blocks and the hidden size, r and e of the
    adapters, the requests of a round, and tokens of a prompt.
    shards: l; slots: max_loras, and clients that ask at the same time
    adapters: names of the Zipf stream; registered: what many adapters are for the time of a step
    rounds: of each comparison; tokens: of an answer; cold: adapters that are read from files
    """

    small_blocks: int = 8
    small_hidden: int = 512
    small_r: int = 64
    small_e: int = 16
    small_requests: int = 96
    small_prompt: int = 16
    large_blocks: int = 7
    large_hidden: int = 2048
    large_r: int = 8
    large_e: int = 2
    large_requests: int = 32
    large_prompt: int = 32
    shards: int = 4
    slots: int = 16
    adapters: int = 1000
    registered: int = 10_000
    rounds: int = 6
    tokens: int = 16
    cold: int = 100

    @property
    def small(self) -> Case:
        return Case(self.small_blocks, self.small_hidden, self.small_r, self.small_e, self.shards, self.adapters)

    @property
    def large(self) -> Case:
        return Case(self.large_blocks, self.large_hidden, self.large_r, self.large_e, self.shards, self.adapters)


@dataclass(frozen=True)
class Measured:
    """One line of the table. detail: what the ratio is made of; aim: the most it should be, or the least"""

    figure: str
    ratio: Ratio
    detail: str
    aim: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        if self.aim is None:
            return None
        return self.ratio.median >= self.aim if self.at_least else self.ratio.median <= self.aim


class Bench:
    """The inputs, and the engines. Those that several figures ask are started once."""

    def __init__(self, sizes: Sizes, cache_dir: Path) -> None:
        self.sizes, self.cache_dir, self._stack = sizes, cache_dir, ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def folder(self, case: Case, form: str, number: int) -> Path:
        """Of one adapter."""
        return prepared(case, self.cache_dir) / form / str(number)

    def folders(self, case: Case, form: str, numbers: Sequence[int] | range) -> list[Path]:
        return [self.folder(case, form, number) for number in numbers]

    def engine(self, case: Case, **settings: Any) -> Engine:
        """An engine that one figure asks; to be used in a `with`."""
        given = {"plugin": True, "slots": self.sizes.slots, "rank": case.rank, "on_host": self.sizes.registered}
        return Engine(Settings(prepared(case, self.cache_dir) / "base", **given | settings))

    @cached_property
    def small(self) -> Engine:
        """With the plugin, and all MoS adapters read at start."""
        return self._stack.enter_context(self._preloaded(self.sizes.small))

    @cached_property
    def large(self) -> Engine:
        """As `small`."""
        return self._stack.enter_context(self._preloaded(self.sizes.large))

    def _preloaded(self, case: Case) -> Engine:
        return self.engine(case, preload=prepared(case, self.cache_dir) / "mos")


def in_turns(rounds: int, arms: Mapping[str, Callable[[int], Any]]) -> dict[str, list[Any]]:
    """What each arm gives in each round, after one that does not count. The order of the arms turns with each round."""
    found: dict[str, list[Any]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name in list(arms)[:: -1 if number % 2 else 1]:
            found[name].append(arms[name](number))
    return {name: results[1:] for name, results in found.items()}


def neighbours(first: Sequence[float], second: Sequence[float]) -> Ratio:
    """The median ratio of results of the same rounds, with its 95% interval."""
    return summary([one / other for one, other in zip(first, second, strict=True)])


def percentiles(first: Sequence[float], second: Sequence[float], q: float) -> Ratio:
    """The ratio of two percentiles, with the 95% interval of resampled rounds."""
    one, other = np.asarray(first), np.asarray(second)
    drawn = np.random.default_rng(0).integers(0, len(one), (RESAMPLED, len(one)))
    ratios = np.percentile(one[drawn], q, axis=1) / np.percentile(other[drawn], q, axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Ratio(float(np.percentile(one, q) / np.percentile(other, q)), float(low), float(high))


def exact(value: float) -> Ratio:
    """A ratio that is counted."""
    return Ratio(value, value, value)


def zipf(seed: int, count: int, names: int) -> list[int]:
    """`count` draws out of `names`, of which the k-th is asked for 1/k times as often as the first (exponent 1.0)."""
    weights = 1 / np.arange(1, names + 1)
    return [int(number) for number in np.random.default_rng(seed).choice(names, count, p=weights / weights.sum())]
