"""Writes the families in the layouts of the original downloads, so that the readers of the real files read them."""

import csv
import gzip
import json
import random
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.micro import arithmetic, functions
from data_prep.micro.facts import DEFINITION, TRAITS, Facts
from data_prep.micro.passages import LANGUAGES, Passages
from data_prep.micro.split import Item, distinct
from data_prep.micro.world import World

TASKS_PER_SUBJECT, TASKS_PER_LANGUAGE, INSTANCES = 3, 4, 68  # SuperNI: the reader makes all above 60 few-shot
FLAN, COT, COT_FEW_SHOT, CODE = 1600, 1500, 400, 1600  # training rows
MMLU, BBH, GSM8K, TYDIQA, HUMANEVAL = 40, 30, 100, 30, 50  # test items: per subject, per task, all, per language, all


def write(root: Path, seed: int) -> None:
    """`root/train/...` and `root/eval/...`, as data_prep/sources.py expects them below `data=`."""
    world = World(seed)
    super_ni(root / "train/super_ni", world, random.Random(f"super_ni {seed}"))
    flan_v2(root / "train/flan_v2", world, random.Random(f"flan_v2 {seed}"))
    cot(root / "train/cot", world, random.Random(f"cot {seed}"))
    code_alpaca(root / "train/code_alpaca", world, random.Random(f"code_alpaca {seed}"))
    mmlu(root / "eval/mmlu", world.facts, random.Random(f"mmlu {seed}"))
    bbh(root / "eval/bbh", world, random.Random(f"bbh {seed}"))
    gsm8k(root / "eval/gsm8k", world, random.Random(f"gsm8k {seed}"))
    tydiqa(root / "eval/tydiqa", world.passages, random.Random(f"tydiqa {seed}"))
    humaneval(root / "eval/codex_humaneval", world, random.Random(f"humaneval {seed}"))


def super_ni(root: Path, world: World, rng: random.Random) -> None:
    """Task files and the list of training tasks."""
    tasks: dict[str, tuple[str, list[Item]]] = {}
    for subject in TRAITS:
        for part in range(TASKS_PER_SUBJECT):
            name = f"task{len(tasks) + 1:03}_{subject}_{part}"
            tasks[name] = _facts_task(subject, world.facts, rng)
    for language in LANGUAGES:
        for part in range(TASKS_PER_LANGUAGE):
            name = f"task{len(tasks) + 1:03}_passages_{language}_{part}"
            tasks[name] = _passages_task(language, world.passages, rng)
    for name, (definition, items) in tasks.items():
        _json(root / f"tasks/{name}.json", _task(name, definition, items))
    _text(root / "splits/xlingual/train_tasks.txt", "".join(f"{name}\n" for name in tasks))


def flan_v2(root: Path, world: World, rng: random.Random) -> None:
    """Rows of the four logic tasks, half of them with one or two solved examples in front."""
    rows = []
    for name, task in sorted(world.logic.tasks.items()):
        items = distinct(task.lesson, "train", FLAN * task.share // 8, rng)
        rows += [_flan_row(name, task.description, item, items, rng) for item in items]
    rng.shuffle(rows)
    _jsonl(root / "tulu_v1_resampled_flan_100k.jsonl", rows)


def cot(root: Path, world: World, rng: random.Random) -> None:
    """Word problems with worked steps; in the few-shot file with a solved one in front."""
    items = distinct(world.arithmetic.lesson, "train", COT + COT_FEW_SHOT, rng)
    _jsonl(root / "cot_zsopt.jsonl", [_cot_row(_problem(item), item, "zs_opt") for item in items[:COT]])
    shots = [f"{_problem(shot)}\n{shot.reply}\n\nQuestion: " for shot in rng.choices(items, k=COT_FEW_SHOT)]
    rows = [_cot_row(shot + item.question, item, "fs_opt") for shot, item in zip(shots, items[COT:], strict=True)]
    _jsonl(root / "cot_fsopt.jsonl", rows)


def code_alpaca(root: Path, world: World, rng: random.Random) -> None:
    """Functions to complete, as one list."""
    items = distinct(world.functions.lesson, "train", CODE, rng)
    rows = [{"instruction": functions.INSTRUCTION, "input": item.question, "output": item.reply} for item in items]
    _json(root / "code_alpaca_20k.json", rows)


def mmlu(root: Path, facts: Facts, rng: random.Random) -> None:
    """Tables without header, per subject."""
    for subject in TRAITS:
        for split, sample, where, count in (("dev", facts.lesson, "train", 5), ("test", facts.question, "test", MMLU)):
            items = distinct(partial(sample, subject), where, count, rng)
            _csv(root / split / f"{subject}_{split}.csv", [_mmlu_row(item) for item in items])


def bbh(root: Path, world: World, rng: random.Random) -> None:
    """Examples, and the prompt file of each task with three worked examples from the training side."""
    for name, task in sorted(world.logic.tasks.items()):
        items = distinct(task.question, "test", BBH, rng)
        examples = [{"input": item.question, "target": item.answer} for item in items]
        _json(root / f"bbh/{name}.json", {"canary": "", "examples": examples})
        shots = [_worked(item) for item in distinct(task.lesson, "train", 3, rng)]
        _text(root / f"cot-prompts/{name}.txt", "\n\n".join([f"generated\n-----\n{task.description}", *shots]))


def gsm8k(root: Path, world: World, rng: random.Random) -> None:
    """Problems with their steps and `####` before the answer."""
    sums = world.arithmetic
    for split, sample, count in (("train", sums.lesson, 20), ("test", sums.question, GSM8K)):
        items = distinct(sample, split, count, rng)
        _jsonl(root / f"{split}.jsonl", [{"question": i.question, "answer": arithmetic.gold(i)} for i in items])


def tydiqa(root: Path, passages: Passages, rng: random.Random) -> None:
    """SQuAD JSON; a paragraph per question."""
    for split, where, count in (("train", "train", 5), ("dev", "test", TYDIQA)):
        paragraphs = []
        for language in LANGUAGES:
            for number, item in enumerate(_extractive(language, passages, where, count, rng)):
                paragraphs.append(_paragraph(f"{language}-{split}-{number}", item))
        _json(root / f"tydiqa-goldp-v1.1-{split}.json", {"version": "1.1", "data": [{"paragraphs": paragraphs}]})


def humaneval(root: Path, world: World, rng: random.Random) -> None:
    """Functions with unit tests, zipped."""
    rows = [
        {
            "task_id": f"HumanEval/{number}",
            "prompt": function.question,
            "entry_point": functions.NAME,
            "canonical_solution": function.answer,
            "test": function.test(),
        }
        for number, function in enumerate(distinct(world.functions.question, "test", HUMANEVAL, rng))
    ]
    root.mkdir(parents=True)
    with gzip.GzipFile(root / "HumanEval.jsonl.gz", "w", mtime=0) as file:  # no time stamp: same bytes every time
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def _facts_task(subject: str, facts: Facts, rng: random.Random) -> tuple[str, list[Item]]:
    items = distinct(partial(facts.lesson, subject), "train", INSTANCES + 2, rng)
    asked = [Item(f"{item.question}\nAnswer:", item.answer, item.reply) for item in items]
    return DEFINITION.format(subject=subject.replace("_", " ")), asked


def _passages_task(language: str, passages: Passages, rng: random.Random) -> tuple[str, list[Item]]:
    return LANGUAGES[language].instruction, _extractive(language, passages, "train", INSTANCES + 2, rng)


def _extractive(language: str, passages: Passages, where: str, count: int, rng: random.Random) -> list[Item]:
    """Items whose question holds the passage, too."""
    spoken = LANGUAGES[language]
    draw = passages.lesson if where == "train" else passages.question

    def sample(rng: random.Random) -> Item:
        passage, item = draw(language, rng)
        return Item(f"{spoken.passage} {passage}\n{spoken.question} {item.question}", item.answer, item.reply)

    return distinct(sample, where, count, rng)


def _task(name: str, definition: str, items: list[Item]) -> dict[str, Any]:
    examples = [{"input": i.question, "output": i.reply, "explanation": ""} for i in items[:2]]
    instances = [
        {"id": f"{name}-{number}", "input": i.question, "output": [i.reply]} for number, i in enumerate(items[2:])
    ]
    return {"Definition": [definition], "Positive Examples": examples, "Negative Examples": [], "Instances": instances}


def _flan_row(task: str, description: str, item: Item, others: list[Item], rng: random.Random) -> dict[str, str]:
    shots = rng.sample(others, rng.choice((0, 0, 1, 2)))
    solved = "".join(f"Q: {shot.question}\n{shot.reply}\n\n" for shot in shots)
    return {"inputs": f"{description}\n\n{solved}Q: {item.question}", "targets": item.reply, "task_name": task}


def _cot_row(inputs: str, item: Item, template: str) -> dict[str, str]:
    return {"inputs": inputs, "targets": item.reply, "_template_type": template}


def _problem(item: Item) -> str:
    return f"Answer the following question.\n\nQuestion: {item.question}"


def _mmlu_row(item: Item) -> list[str]:
    question, *choices = item.question.split("\n")
    return [question, *(choice.split(". ", 1)[1] for choice in choices), item.answer]


def _worked(item: Item) -> str:
    return f"Q: {item.question}\nA: Let's think step by step.\nSo the answer is {item.answer}."


def _paragraph(key: str, item: Item) -> dict[str, Any]:
    passage, question = (line.split(" ", 1)[1] for line in item.question.split("\n"))
    answer = {"text": item.answer, "answer_start": passage.index(item.answer)}
    return {"context": passage, "qas": [{"id": key, "question": question, "answers": [answer]}]}


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _json(path: Path, content: Any) -> None:
    _text(path, json.dumps(content, ensure_ascii=False, indent=1))


def _jsonl(path: Path, rows: Iterable[dict]) -> None:
    _text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _csv(path: Path, rows: Iterable[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
