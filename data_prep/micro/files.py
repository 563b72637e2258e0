"""Writes an invented world in the file formats of the real downloads, so that the readers of the real files read it."""

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
from data_prep.micro.split import Problem, distinct
from data_prep.micro.world import World

# SuperNI. Of 68 instances the reader makes 60 zero-shot examples and 8 few-shot ones.
TASKS_PER_SUBJECT, TASKS_PER_LANGUAGE, INSTANCES = 3, 4, 68
FLAN, COT, COT_FEW_SHOT, CODE = 1600, 1500, 400, 1600  # examples of the other training sets
# Items of the benchmarks: per subject, per task, in all, per language, in all.
MMLU, BBH, GSM8K, TYDIQA, HUMANEVAL = 40, 30, 100, 30, 50


def write(root: Path, seed: int) -> None:
    """Write `root/train/...` and `root/eval/...`, the layout that `data=` expects (docs/data.md)."""
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
    """Write the task files and the list of training tasks."""
    tasks: dict[str, tuple[str, list[Problem]]] = {}
    for subject in TRAITS:
        for part in range(TASKS_PER_SUBJECT):
            name = f"task{len(tasks) + 1:03}_{subject}_{part}"
            tasks[name] = _facts_task(subject, world.facts, rng)
    for language in LANGUAGES:
        for part in range(TASKS_PER_LANGUAGE):
            name = f"task{len(tasks) + 1:03}_passages_{language}_{part}"
            tasks[name] = _passages_task(language, world.passages, rng)
    for name, (definition, problems) in tasks.items():
        _json(root / f"tasks/{name}.json", _task(name, definition, problems))
    _text(root / "splits/xlingual/train_tasks.txt", "".join(f"{name}\n" for name in tasks))


def flan_v2(root: Path, world: World, rng: random.Random) -> None:
    """Write examples of the four puzzles; half of them have one or two solved problems in front."""
    rows = []
    for name, puzzle in sorted(world.logic.puzzles.items()):
        problems = distinct(puzzle.lesson, "train", FLAN * puzzle.share // 8, rng)
        rows += [_flan_row(name, puzzle.description, problem, problems, rng) for problem in problems]
    rng.shuffle(rows)
    _jsonl(root / "tulu_v1_resampled_flan_100k.jsonl", rows)


def cot(root: Path, world: World, rng: random.Random) -> None:
    """Write word problems with worked steps; in the few-shot file each has a solved problem in front."""
    problems = distinct(world.arithmetic.lesson, "train", COT + COT_FEW_SHOT, rng)
    zero_shot, few_shot = problems[:COT], problems[COT:]
    _jsonl(root / "cot_zsopt.jsonl", [_cot_row(_asked(problem), problem, "zs_opt") for problem in zero_shot])
    shots = [f"{_asked(shot)}\n{shot.reply}\n\nQuestion: " for shot in rng.choices(problems, k=COT_FEW_SHOT)]
    rows = [_cot_row(shot + problem.question, problem, "fs_opt") for shot, problem in zip(shots, few_shot, strict=True)]
    _jsonl(root / "cot_fsopt.jsonl", rows)


def code_alpaca(root: Path, world: World, rng: random.Random) -> None:
    """Write functions to complete, as one JSON list."""
    problems = distinct(world.functions.lesson, "train", CODE, rng)
    rows = [{"instruction": functions.INSTRUCTION, "input": p.question, "output": p.reply} for p in problems]
    _json(root / "code_alpaca_20k.json", rows)


def mmlu(root: Path, facts: Facts, rng: random.Random) -> None:
    """Write one CSV file without header per subject and split."""
    for subject in TRAITS:
        for split, sample, where, count in (("dev", facts.lesson, "train", 5), ("test", facts.question, "test", MMLU)):
            problems = distinct(partial(sample, subject), where, count, rng)
            _csv(root / split / f"{subject}_{split}.csv", [_mmlu_row(problem) for problem in problems])


def bbh(root: Path, world: World, rng: random.Random) -> None:
    """Write the examples of each task, and its prompt file with three solved problems of the training side."""
    for name, puzzle in sorted(world.logic.puzzles.items()):
        problems = distinct(puzzle.question, "test", BBH, rng)
        examples = [{"input": problem.question, "target": problem.answer} for problem in problems]
        _json(root / f"bbh/{name}.json", {"canary": "", "examples": examples})
        shots = [_worked(problem) for problem in distinct(puzzle.lesson, "train", 3, rng)]
        _text(root / f"cot-prompts/{name}.txt", "\n\n".join([f"generated\n-----\n{puzzle.description}", *shots]))


def gsm8k(root: Path, world: World, rng: random.Random) -> None:
    """Write word problems; the answer field holds the steps, then `####` and the number."""
    sums = world.arithmetic
    for split, sample, count in (("train", sums.lesson, 20), ("test", sums.question, GSM8K)):
        problems = distinct(sample, split, count, rng)
        _jsonl(root / f"{split}.jsonl", [{"question": p.question, "answer": arithmetic.gold(p)} for p in problems])


def tydiqa(root: Path, passages: Passages, rng: random.Random) -> None:
    """Write SQuAD JSON with one paragraph per question."""
    for split, where, count in (("train", "train", 5), ("dev", "test", TYDIQA)):
        paragraphs = []
        for language in LANGUAGES:
            for number, problem in enumerate(_extractive(language, passages, where, count, rng)):
                paragraphs.append(_paragraph(f"{language}-{split}-{number}", problem))
        _json(root / f"tydiqa-goldp-v1.1-{split}.json", {"version": "1.1", "data": [{"paragraphs": paragraphs}]})


def humaneval(root: Path, world: World, rng: random.Random) -> None:
    """Write functions with unit tests, as gzipped jsonl."""
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
    with gzip.GzipFile(root / "HumanEval.jsonl.gz", "w", mtime=0) as file:  # gzip would write the time: other bytes
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def _facts_task(subject: str, facts: Facts, rng: random.Random) -> tuple[str, list[Problem]]:
    problems = distinct(partial(facts.lesson, subject), "train", INSTANCES + 2, rng)
    asked = [Problem(f"{problem.question}\nAnswer:", problem.answer, problem.reply) for problem in problems]
    return DEFINITION.format(subject=subject.replace("_", " ")), asked


def _passages_task(language: str, passages: Passages, rng: random.Random) -> tuple[str, list[Problem]]:
    return LANGUAGES[language].instruction, _extractive(language, passages, "train", INSTANCES + 2, rng)


def _extractive(language: str, passages: Passages, where: str, count: int, rng: random.Random) -> list[Problem]:
    """Problems whose question starts with the passage. So the split is over pairs of passage and question."""
    spoken = LANGUAGES[language]
    draw = passages.lesson if where == "train" else passages.question

    def sample(rng: random.Random) -> Problem:
        passage, asked = draw(language, rng)
        return Problem(f"{spoken.passage} {passage}\n{spoken.question} {asked.question}", asked.answer, asked.reply)

    return distinct(sample, where, count, rng)


def _task(name: str, definition: str, problems: list[Problem]) -> dict[str, Any]:
    examples = [{"input": p.question, "output": p.reply, "explanation": ""} for p in problems[:2]]
    instances = [
        {"id": f"{name}-{number}", "input": p.question, "output": [p.reply]} for number, p in enumerate(problems[2:])
    ]
    return {"Definition": [definition], "Positive Examples": examples, "Negative Examples": [], "Instances": instances}


def _flan_row(
    task: str, description: str, problem: Problem, others: list[Problem], rng: random.Random
) -> dict[str, str]:
    shots = rng.sample(others, rng.choice((0, 0, 1, 2)))
    solved = "".join(f"Q: {shot.question}\n{shot.reply}\n\n" for shot in shots)
    return {"inputs": f"{description}\n\n{solved}Q: {problem.question}", "targets": problem.reply, "task_name": task}


def _cot_row(inputs: str, problem: Problem, template: str) -> dict[str, str]:
    return {"inputs": inputs, "targets": problem.reply, "_template_type": template}


def _asked(problem: Problem) -> str:
    return f"Answer the following question.\n\nQuestion: {problem.question}"


def _mmlu_row(problem: Problem) -> list[str]:
    question, *choices = problem.question.split("\n")
    return [question, *(choice.split(". ", 1)[1] for choice in choices), problem.answer]


def _worked(problem: Problem) -> str:
    return f"Q: {problem.question}\nA: Let's think step by step.\nSo the answer is {problem.answer}."


def _paragraph(key: str, problem: Problem) -> dict[str, Any]:
    passage, question = (line.split(" ", 1)[1] for line in problem.question.split("\n"))
    answer = {"text": problem.answer, "answer_start": passage.index(problem.answer)}
    return {"context": passage, "qas": [{"id": key, "question": question, "answers": [answer]}]}


def _text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def _json(path: Path, content: Any) -> None:
    _text(path, json.dumps(content, ensure_ascii=False, indent=1))


def _jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    _text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _csv(path: Path, rows: Iterable[list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
