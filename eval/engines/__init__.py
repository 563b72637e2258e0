"""Engines turn prompts into text. There are two, vllm and hf, with one contract."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol


@dataclass(frozen=True)
class Decoding:
    """How text is generated; temperature 0 is greedy."""

    max_new_tokens: int
    stops: tuple[str, ...] = ()
    samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def resolve_dtype(dtype: str) -> str:
    """`auto` is bfloat16 on CUDA, as in the reference, and float32 on a CPU, where a rerun then gives the same text."""
    if dtype != "auto":
        return dtype
    import torch  # only here: commands that end in a message should not wait for it

    return "bfloat16" if torch.cuda.is_available() else "float32"


class Request(NamedTuple):
    """A prompt, and who answers it: the LoRA directory `adapter`, None the base model."""

    prompt: str
    adapter: Path | None = None


class Engine(Protocol):
    """One base model and any number of LoRA adapters of it.

    `generate` and `letter_logits` yield `(index of the request, result)` as results become ready, in any order, each
    index once. A prompt that leaves no room in the context yields empty results.
    """

    tokenizer: Any

    def close(self) -> None:
        """Free the memory of the model; the engine cannot be used any more."""

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> Iterator[tuple[int, list[str]]]:
        """`decoding.samples` texts per request, each ending before the first stop or the end-of-sequence token."""

    def letter_logits(
        self, requests: Sequence[Request], letter_ids: Mapping[str, int]
    ) -> Iterator[tuple[int, dict[str, float]]]:
        """The next token's logit of each letter."""
