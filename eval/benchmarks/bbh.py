"""BIG-Bench Hard: 27 tasks, 3-shot without the chain of thought, exact match (docs/protocol.md, BBH)."""

import re
from collections.abc import Sequence

from data_prep.benchmarks import BBH
from data_prep.chat import user_prompt
from eval.benchmarks import Item, Settings, Verdict, matches

ANSWER = re.compile(r"[t|T]he answer is (.*?)\.")  # the bar stands in the original's character class too


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


def prompt(shots: str, question: str, settings: Settings) -> str:
    """The whole text given to the model, without `<s>`; `shots` as `direct_shots` returns them."""
    content = f"{shots}\n\nQ: {question}"
    return user_prompt(content, "A:") if settings.chat else f"{content}\nA:"


def items(raw: BBH, tokenizer: object, settings: Settings) -> list[Item]:
    """One item per example; the task is the file."""
    shots = {task: direct_shots(rows.cot_prompt) for task, rows in raw.tasks.items()}
    return [
        Item(id=f"{task}/{i}", task=task, prompt=prompt(shots[task], row.input, settings), gold=row.target)
        for task, rows in raw.tasks.items()
        for i, row in enumerate(rows.examples)
    ]


def parse(output: str, item: Item | None = None) -> str:
    """What stands between the first `the answer is` and the next period, or the whole text; stripped."""
    found = ANSWER.search(output)
    return (found.group(1) if found else output).strip()


def score(item: Item, predictions: Sequence[str]) -> Verdict:
    """100 if equal without case and punctuation: in dyck_languages all brackets of one spacing are equal."""
    return Verdict({"bbh": 100.0 * matches(predictions[0], item.gold)})
