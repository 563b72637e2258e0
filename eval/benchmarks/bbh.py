"""BIG-Bench Hard: 27 tasks, 3-shot without the chain of thought, exact match (docs/protocol.md, BBH)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.benchmarks import entries, existing
from data_prep.chat import user_prompt
from data_prep.files import strict, texts
from data_prep.text import read_text
from eval.benchmarks import Item, Prompting, Verdict, matches

METRICS = ("exact match",)
ANSWER = re.compile(r"[t|T]he answer is (.*?)\.")  # the original has the bar inside the brackets, too


@dataclass(frozen=True)
class Example:
    input: str
    target: str


@dataclass(frozen=True)
class SubTask:
    examples: tuple[Example, ...]
    cot_prompt: str  # the official prompt file, canary included


@dataclass(frozen=True)
class BBH:
    """Sub-tasks by name, in alphabetical order."""

    tasks: dict[str, SubTask]
    label: str = ""

    def __len__(self) -> int:
        return sum(len(task.examples) for task in self.tasks.values())


def load(root: Path) -> BBH:
    """`root/bbh/<task>.json` and `root/cot-prompts/<task>.txt`. Raises FileNotFoundError, ValueError."""
    return BBH({path.stem: _task(path, root) for path in existing(root, "bbh/*.json")})


def _task(path: Path, root: Path) -> SubTask:
    prompt_file = root / "cot-prompts" / f"{path.stem}.txt"
    if not prompt_file.is_file():
        raise FileNotFoundError(
            f"{prompt_file} is missing: every BBH task needs its official chain-of-thought prompt file."
        )
    rows = ((f"{path}[{i}]", row) for i, row in enumerate(entries(path, "examples")))
    examples = strict(rows, lambda row: Example(*texts(row, "input", "target")))
    return SubTask(tuple(examples), read_text(prompt_file))


def direct_shots(prompt_file: str) -> str:
    """The text of a task's chain-of-thought prompt file with each worked answer reduced to its result.

    Raises ValueError for an example without `A:` or without a result.
    """
    _, _, text = prompt_file.split("\n", 2)  # the first two lines are the canary
    return "\n\n".join(_direct(part) if part.startswith("Q:") else part for part in text.split("\n\n")).strip()


def _direct(example: str) -> str:
    if "\nA:" not in example or "So the answer is" not in example:
        raise ValueError(f"A BBH prompt example needs 'A:' and 'So the answer is'; this one has not: {example[:80]!r}.")
    question = example.split("\nA:")[0].strip()
    answer = example.split("So the answer is")[-1].strip()
    return f"{question}\nA: {answer}"


def prompt(shots: str, question: str, prompting: Prompting) -> str:
    """The whole text given to the model, without `<s>`; `shots` as `direct_shots` returns them."""
    content = f"{shots}\n\nQ: {question}"
    return user_prompt(content, "A:") if prompting.chat else f"{content}\nA:"


def items(raw: BBH, tokenizer: object, prompting: Prompting) -> list[Item]:
    """One item per example; the task is the file."""
    shots = {task: direct_shots(rows.cot_prompt) for task, rows in raw.tasks.items()}
    return [
        Item(id=f"{task}/{i}", task=task, prompt=prompt(shots[task], row.input, prompting), gold=row.target)
        for task, rows in raw.tasks.items()
        for i, row in enumerate(rows.examples)
    ]


def parse(output: str, item: Item | None = None) -> str:
    """The text between the first `the answer is` and the next period, or the whole text; stripped."""
    found = ANSWER.search(output)
    return (found.group(1) if found else output).strip()


def score(item: Item, predictions: Sequence[str]) -> Verdict:
    """100 if equal without case and punctuation: in dyck_languages all brackets of one spacing are equal."""
    return Verdict((100.0 * matches(predictions[0], item.gold),))


def golden(given: dict[str, Any], judge: Any) -> dict[str, Any]:
    """The result of a golden case (eval/golden.py)."""
    prediction, (score,) = judge(given["output"], gold=given["target"])
    return {"prediction": prediction, "correct": score == 100.0}


def golden_prompt(given: dict[str, Any], prompting: Prompting) -> str:
    """The prompt of a golden case."""
    return prompt(direct_shots(given["prompt_file"]), given["item"]["input"], prompting)
