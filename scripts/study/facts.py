"""Random facts: two key tokens -> one value token; and how many bits of them a model holds."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from data_prep.storage import digest
from scripts.study.settings import FactsSettings


@dataclass(frozen=True)
class Facts:
    """keys: (n, 2) token ids, no two rows alike; values: (n,) in [0, v), counted from the first value token."""

    keys: Tensor
    values: Tensor

    def to(self, device: torch.device) -> "Facts":
        return Facts(self.keys.to(device), self.values.to(device))


def draw(settings: FactsSettings, seed: int, vocabulary: int) -> Facts:
    """Distinct pairs of key tokens, each with a value drawn uniformly. int64; the same seed gives the same facts.

    vocabulary: size of the base model's vocabulary
    Raises ValueError if there are fewer pairs than facts, or fewer tokens than the settings name.
    """
    first, keys = settings.first_token, settings.keys
    if settings.count > keys**2:
        raise ValueError(
            f"capacity.facts.count={settings.count} needs more pairs than capacity.facts.keys={keys} tokens make "
            f"({keys**2}); raise keys."
        )
    if first + max(keys, settings.values) > vocabulary:
        raise ValueError(
            f"capacity.facts needs the tokens {first} to {first + max(keys, settings.values) - 1}, but the base model "
            f"has {vocabulary}; lower first_token, keys or values."
        )
    generator = stream(seed, "facts")
    pairs = torch.randperm(keys**2, generator=generator)[: settings.count]  # (n,)
    values = torch.randint(settings.values, (settings.count,), generator=generator)
    return Facts(torch.stack([pairs // keys, pairs % keys], 1) + first, values)


def stream(seed: int, purpose: str) -> torch.Generator:
    """Random numbers for one purpose; streams of other purposes or seeds have nothing in common with it."""
    return torch.Generator().manual_seed(int(digest([purpose, seed])[:8], 16))


def bits_per_parameter(cross_entropy: float, facts: int, values: int, parameters: int) -> float:
    """Information that the adapter holds of the facts: max(0, n (log2 v - H)) / parameters.

    cross_entropy: H over all n facts, in nats; a model without knowledge has log v. A guess that is worse than none
    counts as no knowledge.
    """
    known = facts * (math.log2(values) - cross_entropy / math.log(2))
    return max(0.0, known) / parameters
