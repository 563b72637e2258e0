"""Flan V2 and its chain-of-thought part: jsonl with `inputs` and `targets` (docs/protocol.md, Training data)."""

import random
from collections.abc import Iterator
from pathlib import Path

from data_prep.files import Tally, decode, numbered_lines, texts, usable
from data_prep.readers.conversation import SEED, Conversation, conversation
from data_prep.sources import Files, single

Pair = tuple[str, ...]  # (inputs, targets)


def read_flan_v2(files: Files, tally: Tally) -> Iterator[Conversation]:
    """Yield all lines in order. files: role `rows`. Raises ValueError if the file is truncated."""
    yield from _conversations("flan_v2", _pairs(single(files, "rows"), tally))


def read_cot(files: Files, tally: Tally, per_file: int) -> Iterator[Conversation]:
    """Yield `per_file` lines of each file, drawn as the original does: one `sample` per file, zero-shot first.

    files: roles `zero_shot` and `few_shot`
    per_file: a file that has no more lines is taken whole, in order
    Raises ValueError if a file is truncated.
    """
    rng = random.Random(SEED)
    sampled: list[Pair] = []
    for role in ("zero_shot", "few_shot"):
        pairs = list(_pairs(single(files, role), tally))
        sampled += rng.sample(pairs, k=per_file) if len(pairs) > per_file else pairs
    yield from _conversations("cot", iter(sampled))


def _pairs(path: Path, tally: Tally) -> Iterator[Pair]:
    return usable(numbered_lines(path), lambda line: texts(decode(line), "inputs", "targets"), tally)


def _conversations(dataset: str, pairs: Iterator[Pair]) -> Iterator[Conversation]:
    for number, (inputs, targets) in enumerate(pairs):
        yield conversation(dataset, number, _ended(inputs), targets)


def _ended(inputs: str) -> str:
    """Separate the prompt from the reply by a newline, unless a newline or a colon already does."""
    done = inputs.endswith("\n") or inputs.rstrip().endswith(":")
    return inputs if done else inputs + "\n"
