"""The two sides of a benchmark beside each other: which prompts and which scores are the same."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

from scripts.original.ours import Scores, Trial
from scripts.original.theirs import Answered

TOLERANCE = 1e-6  # percent
AROUND = 20  # characters before a difference that are shown with it


@dataclass(frozen=True)
class Compared:
    """What came out for the answers of one run. Scores are percent per table column.

    items: of the benchmark, ours;  asked: prompts of theirs, of which `same_prompt` are ours to the letter
    answered: items of these that the run has answers to, of which `same_score` have the same scores
    ours, theirs: means over the answered items, both by our rule
    said: what their script itself says, where every item is answered; stored: what the run's evaluation says
    variant: of the run's evaluation;  differences: a line each, all of them
    """

    benchmark: str
    run: str
    items: int
    asked: int
    same_prompt: int
    answered: int
    same_score: int
    ours: Scores
    theirs: Scores
    said: Scores | None
    stored: Scores
    variant: str
    differences: list[str]


def compared(trial: Trial, answered: Answered) -> Compared:
    """Our side and theirs of one run's answers."""
    theirs = {name: scores for name, scores in answered.scores().items() if name in trial.records}
    ours = {name: scores for name, scores in trial.scores().items() if name in theirs}
    unlike = [name for name in theirs if not same(ours[name], theirs[name])]
    shared = sum(name is not None for _, name in answered.asked)
    whole = len(theirs) == len(trial.items) == len(answered.asked)
    return Compared(
        benchmark=trial.benchmark.raw.label,
        run=trial.run.name,
        items=len(trial.items),
        asked=len(answered.asked),
        same_prompt=shared,
        answered=len(theirs),
        same_score=len(theirs) - len(unlike),
        ours=trial.average(ours),
        theirs=trial.average(theirs),
        said=answered.overall() if whole else None,
        stored=trial.metrics["scores"],
        variant=trial.metrics["variant"],
        differences=[
            *_other_prompts(trial, answered),
            *(f"`{name}`: {shown(ours[name])} here, {shown(theirs[name])} there" for name in unlike),
            *(f"a program that is built only there: {program[-2 * AROUND :]!r}" for program in answered.unknown),
        ],
    )


def same(one: Scores, other: Scores) -> bool:
    """Equal within rounding."""
    return all(abs(one[column] - other[column]) <= TOLERANCE for column in one)


def shown(scores: Scores) -> str:
    """Percent, one number per column."""
    return " / ".join(f"{percent:.2f}" for percent in scores.values())


def first_difference(ours: str, theirs: str) -> str:
    """Where two texts part, with a few characters before it."""
    at = _shared(ours, theirs)
    start = max(0, at - AROUND)
    return f"{ours[start : at + AROUND]!r} here, {theirs[start : at + AROUND]!r} there"


def _other_prompts(trial: Trial, answered: Answered) -> Iterator[str]:
    """The prompts that only theirs asks, each beside the most similar one that only ours asks."""
    found = {name for _, name in answered.asked}
    left = {name: item.prompt for name, item in trial.items.items() if name not in found}
    for prompt in (prompt for prompt, name in answered.asked if name is None):
        if not left:
            yield f"a prompt that is asked only there: {prompt[-2 * AROUND :]!r}"
            continue
        nearest = max(left, key=lambda name: _likeness(left[name], prompt))
        yield f"prompt of `{nearest}`: {first_difference(left.pop(nearest), prompt)}"
    yield from (f"prompt of `{name}`: asked only here" for name in left)


def _likeness(one: str, other: str) -> int:
    """Characters that two texts share at their beginning and at their end."""
    return _shared(one, other) + _shared(one[::-1], other[::-1])


def _shared(one: str, other: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
