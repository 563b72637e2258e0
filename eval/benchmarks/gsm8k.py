"""GSM8K: grade-school arithmetic with worked examples; the last number counts (docs/protocol.md, GSM8K)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.chat import user_prompt
from data_prep.files import BrokenRow, decode, numbered_lines, strict, texts
from data_prep.sources import Files, single
from eval.benchmarks import Item, Prompting, Verdict, matches

METRICS = ("exact match",)
# The eight exemplars of Wei et al. 2022, "Chain-of-thought prompting", Table 20: question, reasoning, answer.
EXEMPLARS = (
    (
        "There are 15 trees in the grove. Grove workers will plant trees in the grove today. After they are done, "
        "there will be 21 trees. How many trees did the grove workers plant today?",
        "There are 15 trees originally. Then there were 21 trees after some more were planted. So there must have been "
        "21 - 15 = 6. So the answer is 6.",
    ),
    (
        "If there are 3 cars in the parking lot and 2 more cars arrive, how many cars are in the parking lot?",
        "There are originally 3 cars. 2 more cars arrive. 3 + 2 = 5. So the answer is 5.",
    ),
    (
        "Leah had 32 chocolates and her sister had 42. If they ate 35, how many pieces do they have left in total?",
        "Originally, Leah had 32 chocolates. Her sister had 42. So in total they had 32 + 42 = 74. After eating 35, "
        "they had 74 - 35 = 39. So the answer is 39.",
    ),
    (
        "Jason had 20 lollipops. He gave Denny some lollipops. Now Jason has 12 lollipops. How many lollipops did "
        "Jason give to Denny?",
        "Jason started with 20 lollipops. Then he had 12 after giving some to Denny. So he gave Denny 20 - 12 = 8. So "
        "the answer is 8.",
    ),
    (
        "Shawn has five toys. For Christmas, he got two toys each from his mom and dad. How many toys does he have "
        "now?",
        "Shawn started with 5 toys. If he got 2 toys each from his mom and dad, then that is 4 more toys. 5 + 4 = 9. "
        "So the answer is 9.",
    ),
    (
        "There were nine computers in the server room. Five more computers were installed each day, from monday to "
        "thursday. How many computers are now in the server room?",
        "There were originally 9 computers. For each of 4 days, 5 more computers were added. So 5 * 4 = 20 computers "
        "were added. 9 + 20 is 29. So the answer is 29.",
    ),
    (
        "Michael had 58 golf balls. On tuesday, he lost 23 golf balls. On wednesday, he lost 2 more. How many golf "
        "balls did he have at the end of wednesday?",
        "Michael started with 58 golf balls. After losing 23 on tuesday, he had 58 - 23 = 35. After losing 2 more, he "
        "had 35 - 2 = 33 golf balls. So the answer is 33.",
    ),
    (
        "Olivia has $23. She bought five bagels for $3 each. How much money does she have left?",
        "Olivia had 23 dollars. 5 bagels for 3 dollars each will be 5 x 3 = 15 dollars. So she has 23 - 15 dollars "
        "left. 23 - 15 is 8. So the answer is 8.",
    ),
)


@dataclass(frozen=True)
class Question:
    question: str
    gold: str  # the number


@dataclass(frozen=True)
class GSM8K:
    test: tuple[Question, ...]
    label: str = ""

    def __len__(self) -> int:
        return len(self.test)


def load(files: Files) -> GSM8K:
    """`test`: a jsonl of questions and answers. Raises ValueError."""
    return GSM8K(tuple(strict(numbered_lines(single(files, "test")), _question)))


def _question(line: str) -> Question:
    question, answer = texts(decode(line), "question", "answer")
    return Question(question, gold(answer))


def prefix(shots: Sequence[tuple[str, str]]) -> str:
    """Instruction and worked examples, each a (question, reasoning)."""
    head = "Answer the following questions.\n\n" if shots else "Answer the following question.\n\n"
    return head + "".join(f"Question: {question}\nAnswer: {reasoning}\n\n" for question, reasoning in shots)


def prompt(question: str, shots: Sequence[tuple[str, str]], prompting: Prompting) -> str:
    """The whole text given to the model, without `<s>`."""
    content = f"{prefix(shots)}Question: {question.strip()}"
    return user_prompt(content, "Answer:") if prompting.chat else f"{content}\nAnswer:"


def items(raw: GSM8K, tokenizer: object, prompting: Prompting) -> list[Item]:
    """One item per test question; the task is the whole benchmark. Raises ValueError for more shots than there are."""
    if prompting.shots > len(EXEMPLARS):
        raise ValueError(f"GSM8K has {len(EXEMPLARS)} worked examples, not {prompting.shots}; ask for fewer shots.")
    shots = EXEMPLARS[: prompting.shots]
    return [
        Item(id=str(i), task="gsm8k", prompt=prompt(row.question, shots, prompting), gold=row.gold)
        for i, row in enumerate(raw.test)
    ]


def gold(answer: str) -> str:
    """The number after the first `####` of a gold answer: rationale, `####`, number. Raises BrokenRow without one."""
    number = answer.partition("####")[2].partition("####")[0].strip()
    if not re.search(r"\d", number):  # an empty output would be the right one
        raise BrokenRow(f"an answer needs '####' and a number; this one is {answer[-80:]!r}")
    return _drop_commas(number)


def parse(output: str, item: Item | None = None) -> str:
    """The last number in the text, or the whole text if it has none. The sign is kept on decimals only."""
    text = _drop_commas(output)
    numbers = re.findall(r"[-+]?\d*\.\d+|\d+", text)
    return numbers[-1] if numbers else text


def score(item: Item, predictions: Sequence[str]) -> Verdict:
    """100 if the number equals the gold one as text without punctuation: `-10` equals `10`, `5.0` is not `5`."""
    return Verdict((100.0 * matches(predictions[0], item.gold),))


def golden(given: dict[str, Any], judge: Any) -> dict[str, Any]:
    """The result of a golden case (eval/golden.py)."""
    prediction, (score,) = judge(given["output"], gold=gold(given["answer"]))
    return {"prediction": prediction, "correct": score == 100.0}


def golden_prompt(given: dict[str, Any], prompting: Prompting) -> str:
    """The prompt of a golden case."""
    shots = [(shot["question"], shot.get("cot_answer") or shot.get("cot") or shot["answer"]) for shot in given["shots"]]
    return prompt(given["item"]["question"], shots, prompting)


def _drop_commas(text: str) -> str:
    return re.sub(r"(\d),(\d)", r"\1\2", text)  # one pass, matches do not overlap: `1,2,3` becomes `12,3`
