"""BIG-Bench Hard: 27 tasks, 3-shot without the chain of thought, exact match (docs/protocol.md, BBH)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.benchmarks import entries
from data_prep.chat import user_prompt
from data_prep.files import BrokenRow, strict, texts
from data_prep.sources import Files
from data_prep.text import read_text
from eval.benchmarks import Item, Prompting, Verdict, matches

METRICS = ("exact match",)
SHOTS = 3  # worked examples in every official prompt file
ANSWER = re.compile(r"[t|T]he answer is (.*?)\.")  # the original has the bar inside the brackets, too


@dataclass(frozen=True)
class Example:
    input: str
    target: str


@dataclass(frozen=True)
class SubTask:
    examples: tuple[Example, ...]
    shots: str  # as `direct_shots` makes them of the task's official prompt file


@dataclass(frozen=True)
class BBH:
    """Sub-tasks by name, in alphabetical order."""

    tasks: dict[str, SubTask]
    label: str = ""

    def __len__(self) -> int:
        return sum(len(task.examples) for task in self.tasks.values())


def load(files: Files) -> BBH:
    """`examples`: a file `<task>.json` per task; `prompts`: `<task>.txt`, its official chain-of-thought prompt.

    Raises FileNotFoundError for a task without prompt file, ValueError.
    """
    prompts = {path.stem: path for path in files["prompts"]}
    if missing := [path.stem for path in files["examples"] if path.stem not in prompts]:
        raise FileNotFoundError(
            f"{files['prompts'][0].parent} has no {missing[0]}.txt: every BBH task needs its official chain-of-thought "
            "prompt file."
        )
    return BBH({path.stem: SubTask(_examples(path), _shots(prompts[path.stem])) for path in files["examples"]})


def _examples(path: Path) -> tuple[Example, ...]:
    rows = ((f"{path}[{i}]", row) for i, row in enumerate(entries(path, "examples")))
    return tuple(strict(rows, _example))


def _example(row: Any) -> Example:
    question, target = texts(row, "input", "target")
    if not target.strip():  # an empty output would be the right one
        raise BrokenRow("field 'target' is empty")
    return Example(question, target)


def _shots(path: Path) -> str:
    return next(strict([(str(path), read_text(path))], _whole_shots))


def _whole_shots(prompt_file: str) -> str:
    shots = direct_shots(prompt_file)
    examples = [part for part in shots.split("\n\n") if part.startswith("Q:")]
    if len(examples) != SHOTS or not examples[-1].endswith("."):
        raise BrokenRow(f"{SHOTS} worked examples are needed, the last with a period; it has {len(examples)}")
    return shots


def direct_shots(prompt_file: str) -> str:
    """The text of a task's chain-of-thought prompt file with each worked answer reduced to its result.

    Raises BrokenRow for an example without `A:` or without a result.
    """
    text = "\n".join(prompt_file.split("\n")[2:])  # the first two lines are the canary
    return "\n\n".join(_direct(part) if part.startswith("Q:") else part for part in text.split("\n\n")).strip()


def _direct(example: str) -> str:
    if "\nA:" not in example or "So the answer is" not in example:
        raise BrokenRow(f"a worked example needs 'A:' and 'So the answer is'; this one has not: {example[:80]!r}")
    question = example.split("\nA:")[0].strip()
    answer = example.split("So the answer is")[-1].strip()
    return f"{question}\nA: {answer}"


def prompt(shots: str, question: str, prompting: Prompting) -> str:
    """The whole text given to the model, without `<s>`; `shots` as `direct_shots` returns them."""
    content = f"{shots}\n\nQ: {question}"
    return user_prompt(content, "A:") if prompting.chat else f"{content}\nA:"


def items(raw: BBH, tokenizer: object, prompting: Prompting) -> list[Item]:
    """One item per example; the task is the file."""
    return [
        Item(id=f"{task}/{i}", task=task, prompt=prompt(rows.shots, row.input, prompting), gold=row.target)
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
