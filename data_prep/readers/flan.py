"""Flan V2 and its chain-of-thought submix: jsonl with `inputs` and `targets` (docs/protocol.md, Training data)."""

import random
from collections.abc import Iterator
from pathlib import Path

from data_prep.files import Tally, decode, numbered_lines, texts, usable
from data_prep.readers.rows import SEED, Row, row
from data_prep.sources import Files

Pair = tuple[str, ...]  # (inputs, targets)


def read_flan_v2(files: Files, tally: Tally) -> Iterator[Row]:
    """All lines in order. files: role `rows`. Raises ValueError if the file is truncated."""
    (path,) = files["rows"]
    yield from _rows("flan_v2", _pairs(path, tally))


def read_cot(files: Files, tally: Tally, per_file: int) -> Iterator[Row]:
    """`per_file` lines of each file (all in order if it has fewer), zero-shot first.

    files: roles `zero_shot` and `few_shot`. Sampling imitates `random.seed(42)`, then one `sample` per file.
    Raises ValueError if a file is truncated.
    """
    rng = random.Random(SEED)
    sampled: list[Pair] = []
    for (path,) in (files["zero_shot"], files["few_shot"]):
        pairs = list(_pairs(path, tally))
        sampled += rng.sample(pairs, k=per_file) if len(pairs) > per_file else pairs
    yield from _rows("cot", iter(sampled))


def _pairs(path: Path, tally: Tally) -> Iterator[Pair]:
    return usable(numbered_lines(path), lambda line: texts(decode(line), "inputs", "targets"), tally)


def _rows(dataset: str, pairs: Iterator[Pair]) -> Iterator[Row]:
    for number, (inputs, targets) in enumerate(pairs):
        yield row(dataset, number, _ended(inputs), targets)


def _ended(inputs: str) -> str:
    done = inputs.endswith("\n") or inputs.rstrip().endswith(":")
    return inputs if done else inputs + "\n"
