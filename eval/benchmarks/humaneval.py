"""HumanEval: Python functions to complete, run against their tests, pass@1 (docs/protocol.md, HumanEval)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import comb
from pathlib import Path
from typing import Any

from data_prep.benchmarks import agreeing
from data_prep.chat import user_prompt
from data_prep.files import decode, numbered_lines, strict, texts
from data_prep.sources import Files, single
from eval import sandbox
from eval.benchmarks import Item, Prompting, Verdict

METRICS = ("pass@1",)
_known: dict[str, sandbox.Outcome] = {}  # by program: adapters often write the same one, and each start takes 0.1 s


@dataclass(frozen=True)
class Problem:
    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str
    instruction: str | None = None  # of HumanEvalPack, which only the variant tulu reads


@dataclass(frozen=True)
class HumanEval:
    problems: tuple[Problem, ...]
    label: str = ""

    def __len__(self) -> int:
        return len(self.problems)


def load(files: Files) -> HumanEval:
    """`problems`: a jsonl, packed or not. HumanEvalPack's `humanevalpack.jsonl` beside it, if there, adds instructions.

    Raises ValueError.
    """
    path = agreeing(single(files, "problems"))
    problems = tuple(strict(numbered_lines(path), _problem))
    pack = path.with_name("humanevalpack.jsonl")
    return HumanEval(_instructed(problems, pack) if pack.is_file() else problems)


def _problem(line: str) -> Problem:
    return Problem(*texts(decode(line), "task_id", "prompt", "entry_point", "canonical_solution", "test"))


def _instructed(problems: Sequence[Problem], pack: Path) -> tuple[Problem, ...]:
    """The problems with the instructions of HumanEvalPack, whose own ids are `Python/<n>`."""
    rows = strict(numbered_lines(pack), lambda line: texts(decode(line), "task_id", "instruction"))
    instructions = {task.replace("Python/", "HumanEval/"): instruction for task, instruction in rows}
    if missing := [row.task_id for row in problems if row.task_id not in instructions]:
        raise ValueError(
            f"{pack} has no instruction for {missing[0]}: use the whole Python part of HumanEvalPack, or remove the "
            "file."
        )
    return tuple(replace(row, instruction=instructions[row.task_id]) for row in problems)


def prompt(start: str, instruction: str | None, prompting: Prompting) -> str:
    """The whole text given to the model, without `<s>`.

    start: the imports, signature and docstring to complete; instruction: HumanEvalPack's, read by the tulu variant
    """
    if not prompting.chat:
        return start
    if prompting.variant == "tulu" and instruction is not None:
        return user_prompt(instruction, f"Here is the function:\n\n```python\n{start}")
    # tulu without the Pack file does not repeat the start of the function: a bug of the original, kept
    repeated = start if prompting.variant == "authors" else ""
    return user_prompt(
        f"Complete the following python function.\n\n\n{start}", f"Here is the completed function:\n\n\n{repeated}"
    )


def items(raw: HumanEval, tokenizer: object, prompting: Prompting) -> list[Item]:
    """One item per problem; the task is the whole benchmark."""
    return [
        Item(
            id=row.task_id,
            task="humaneval",
            prompt=prompt(row.prompt, row.instruction, prompting),
            gold=row.canonical_solution,
            extra={"problem": asdict(row), "allow_unprotected": prompting.allow_unprotected},
        )
        for row in raw.problems
    ]


def parse(output: str, item: Item | None = None) -> str:
    """The text as it is. It was cut at the first stop; nothing else is touched."""
    return output


def program(problem: dict[str, Any], completion: str) -> str:
    """What is run: a problem's start, the completion, and the tests. problem: the fields of `Problem`."""
    return f"{problem['prompt']}{completion}\n{problem['test']}\ncheck({problem['entry_point']})"


def score(item: Item, predictions: Sequence[str]) -> Verdict:
    """100 pass@1 of the completions, run in the sandbox; the notes say how each run ended."""
    problem, unprotected = item.extra["problem"], item.extra.get("allow_unprotected", False)
    runs = [outcome(program(problem, text), unprotected) for text in predictions]
    passed = sum(run.passed for run in runs)
    return Verdict((100.0 * pass_at_k(len(runs), passed, 1),), tuple(run.status for run in runs))


def outcome(text: str, unprotected: bool) -> sandbox.Outcome:
    """How a program ends. The same text is not run twice, unless its time was over: a busy machine can do that.

    unprotected: whether it may run where nothing can shut it in
    """
    if text not in _known:
        ended = sandbox.check(text, allow_unprotected=unprotected)
        if ended.status == "timed out":
            return ended
        _known[text] = ended
    return _known[text]


def pass_at_k(n: int, c: int, k: int) -> float:
    """Unbiased chance that one of `k` of `n` samples passes when `c` of them do (Chen et al. 2021, Eq. 1)."""
    return 1.0 if n - c < k else 1.0 - comb(n - c, k) / comb(n, k)


def golden(given: dict[str, Any], judge: Any) -> dict[str, Any]:
    """The result of a golden case (eval/golden.py)."""
    completion, (score,) = judge(given["output"], gold=None, extra={"problem": given["problem"]})
    return {"completion": completion, "passed": score == 100.0}


def golden_prompt(given: dict[str, Any], prompting: Prompting) -> str:
    """The prompt of a golden case."""
    return prompt(given["item"]["prompt"], given["item"].get("instruction"), prompting)


GOLDEN = {"pass_at_k": lambda given: {"pass_at_k": pass_at_k(given["n"], given["c"], given["k"])}}
