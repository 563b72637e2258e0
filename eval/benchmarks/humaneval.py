"""HumanEval: Python functions to complete, run against their tests, pass@1 (docs/protocol.md, HumanEval)."""

from collections.abc import Sequence
from dataclasses import asdict
from math import comb

from data_prep.benchmarks import HumanEval
from data_prep.chat import user_prompt
from eval.benchmarks import Item, Settings, Verdict
from eval.sandbox import check_humaneval


def prompt(start: str, instruction: str | None, settings: Settings) -> str:
    """The whole text given to the model, without `<s>`.

    start: the imports, signature and docstring to complete; instruction: HumanEvalPack's, read by the tulu variant
    """
    if not settings.chat:
        return start
    if settings.variant == "tulu" and instruction is not None:
        return user_prompt(instruction, f"Here is the function:\n\n```python\n{start}")
    # tulu without the Pack file does not repeat the start of the function: a bug of the original, kept
    repeated = start if settings.variant == "authors" else ""
    return user_prompt(
        f"Complete the following python function.\n\n\n{start}", f"Here is the completed function:\n\n\n{repeated}"
    )


def items(raw: HumanEval, tokenizer: object, settings: Settings) -> list[Item]:
    """One item per problem; the task is the whole benchmark."""
    return [
        Item(
            id=row.task_id,
            task="humaneval",
            prompt=prompt(row.prompt, row.instruction, settings),
            gold=row.canonical_solution,
            extra={"problem": asdict(row), "allow_unprotected": settings.allow_unprotected},
        )
        for row in raw.problems
    ]


def parse(output: str, item: Item | None = None) -> str:
    """The text as it is: already cut at the first stop, and nothing else is touched."""
    return output


def score(item: Item, predictions: Sequence[str]) -> Verdict:
    """100 pass@1 of the completions, each run in the sandbox; the notes say how each run ended."""
    problem, unprotected = item.extra["problem"], item.extra.get("allow_unprotected", False)
    runs = [check_humaneval(problem, completion, allow_unprotected=unprotected) for completion in predictions]
    passed = sum(run.passed for run in runs)
    return Verdict({"humaneval": 100.0 * pass_at_k(len(runs), passed, 1)}, tuple(run.status for run in runs))


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that one of `k` of `n` samples passes when `c` of them do (Chen et al. 2021, Eq. 1)."""
    return 1.0 if n - c < k else 1.0 - comb(n - c, k) / comb(n, k)
