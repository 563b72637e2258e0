"""The original files of the benchmarks, read as they are: no cell is reinterpreted (docs/protocol.md, Benchmarks)."""

import csv
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from data_prep.files import BrokenRow, decode, load_json, needed, numbered_lines, strict, texts
from data_prep.sources import find_files, locate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MMLUQuestion:
    question: str
    choices: tuple[str, str, str, str]
    answer: str  # A, B, C or D


@dataclass(frozen=True)
class MMLU:
    """Questions by subject (as in the file name, with underscores), subjects in alphabetical order."""

    dev: dict[str, tuple[MMLUQuestion, ...]]
    test: dict[str, tuple[MMLUQuestion, ...]]
    label: str = "MMLU"


@dataclass(frozen=True)
class BBHExample:
    input: str
    target: str


@dataclass(frozen=True)
class BBHTask:
    examples: tuple[BBHExample, ...]
    cot_prompt: str  # the official prompt file, canary included


@dataclass(frozen=True)
class BBH:
    """Tasks by name, in alphabetical order."""

    tasks: dict[str, BBHTask]
    label: str = "BBH"


@dataclass(frozen=True)
class GSM8KQuestion:
    question: str
    answer: str  # the raw field: rationale, `####`, number


@dataclass(frozen=True)
class GSM8K:
    test: tuple[GSM8KQuestion, ...]
    label: str = "GSM8K"


@dataclass(frozen=True)
class TyDiQuestion:
    id: str
    language: str  # English name, lower case: the id before its first `-`
    context: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class TyDiQA:
    """Questions in file order. `label` is XQuAD for that stand-in: its scores must not be called TyDi QA."""

    train: tuple[TyDiQuestion, ...]
    dev: tuple[TyDiQuestion, ...]
    label: str


@dataclass(frozen=True)
class HumanEvalProblem:
    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str
    instruction: str | None = None  # of HumanEvalPack, which only the tulu variant reads


@dataclass(frozen=True)
class HumanEval:
    problems: tuple[HumanEvalProblem, ...]
    label: str = "HumanEval"


def load_mmlu(root: Path) -> MMLU:
    """`root/{dev,test}/<subject>_{dev,test}.csv`, without header. Raises FileNotFoundError, ValueError."""
    subjects = [path.name.removesuffix("_test.csv") for path in _existing(root, "test/*_test.csv")]
    dev, test = (
        {subject: _mmlu_file(root / split / f"{subject}_{split}.csv") for subject in subjects}
        for split in ("dev", "test")
    )
    _expect("MMLU", sum(map(len, test.values())), 14_042)
    return MMLU(dev, test)


def load_bbh(root: Path) -> BBH:
    """`root/bbh/<task>.json` and `root/cot-prompts/<task>.txt`. Raises FileNotFoundError, ValueError."""
    tasks = {path.stem: _bbh_task(path, root) for path in _existing(root, "bbh/*.json")}
    _expect("BBH", sum(len(task.examples) for task in tasks.values()), 6_511)
    return BBH(tasks)


def load_gsm8k(root: Path) -> GSM8K:
    """`root/test.jsonl`. Raises FileNotFoundError, ValueError."""
    (path,) = _existing(root, "test.jsonl")
    test = tuple(strict(numbered_lines(path), lambda line: GSM8KQuestion(*texts(decode(line), "question", "answer"))))
    _expect("GSM8K", len(test), 1_319)
    return GSM8K(test)


def load_tydiqa(root: Path) -> TyDiQA:
    """`root/tydiqa-goldp-v1.1-{train,dev}.json`, SQuAD layout. Raises FileNotFoundError, ValueError."""
    train, dev = (
        tuple(_tydi_questions(_existing(root, f"tydiqa-goldp-v1.1-{split}.json")[0])) for split in ("train", "dev")
    )
    stand_in = any("-xquad-" in question.id for question in dev)
    if not stand_in:
        _expect("TyDi QA", len(dev), 5_077)
    return TyDiQA(train, dev, label="XQuAD" if stand_in else "TyDi QA")


def load_humaneval(root: Path) -> HumanEval:
    """`root/HumanEval.jsonl.gz`, packed or not, and HumanEvalPack's `root/humanevalpack.jsonl` if it is there.

    Raises FileNotFoundError, ValueError.
    """
    path = _existing(root, "HumanEval.jsonl*")[0]
    instructions = _pack_instructions(root / "humanevalpack.jsonl")
    problems = [
        replace(problem, instruction=instructions.get(problem.task_id))
        for problem in strict(numbered_lines(path), _humaneval_problem)
    ]
    _expect("HumanEval", len(problems), 164)
    return HumanEval(tuple(problems))


def _existing(root: Path, pattern: str) -> list[Path]:
    paths = sorted(root.glob(pattern))
    if not paths:
        raise FileNotFoundError(f"No '{pattern}' in {root}; docs/data.md says where each benchmark's files belong.")
    return paths


def _expect(name: str, found: int, published: int) -> None:
    if found != published:
        log.warning("%s has %d items here, %d as published: scores are not comparable.", name, found, published)


def _mmlu_file(path: Path) -> tuple[MMLUQuestion, ...]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: every MMLU subject needs a dev and a test file.")
    return tuple(strict(_csv_rows(path), _mmlu_question))


def _csv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file, strict=True)
        try:
            for row in reader:
                yield f"{path}:{reader.line_num}", row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}:{reader.line_num}: {error}; download the file again.") from error


def _mmlu_question(row: list[str]) -> MMLUQuestion:
    if len(row) != 6 or row[5] not in ("A", "B", "C", "D"):
        raise BrokenRow(
            f"question, four choices and a letter A to D are needed, got {len(row)} cells ending {row[-1:]}"
        )
    question, a, b, c, d, answer = row
    return MMLUQuestion(question, (a, b, c, d), answer)


def _bbh_task(path: Path, root: Path) -> BBHTask:
    prompt = root / "cot-prompts" / f"{path.stem}.txt"
    if not prompt.is_file():
        raise FileNotFoundError(f"{prompt} is missing: every BBH task needs its official chain-of-thought prompt file.")
    rows = enumerate(_entries(path, "examples"))
    examples = strict(
        ((f"{path}[{i}]", row) for i, row in rows), lambda row: BBHExample(*texts(row, "input", "target"))
    )
    return BBHTask(tuple(examples), prompt.read_text(encoding="utf-8"))


def _entries(path: Path, name: str) -> list[Any]:
    """The list `name` of the JSON object in `path`."""
    return next(strict([(str(path), load_json(path))], lambda document: needed(document, name, list)))


def _tydi_questions(path: Path) -> Iterator[TyDiQuestion]:
    articles = ((f"{path}[{i}]", article) for i, article in enumerate(_entries(path, "data")))
    for questions in strict(articles, lambda article: list(_article_questions(article))):
        yield from questions


def _article_questions(article: Any) -> Iterator[TyDiQuestion]:
    for paragraph in needed(article, "paragraphs", list):
        (context,) = texts(paragraph, "context")
        for row in needed(paragraph, "qas", list):
            id_, question = texts(row, "id", "question")
            answers = tuple(texts(answer, "text")[0] for answer in needed(row, "answers", list))
            if not answers:
                raise BrokenRow(f"question '{id_}' has no answer")
            yield TyDiQuestion(id_, id_.split("-")[0], context, question, answers)


def _humaneval_problem(line: bytes) -> HumanEvalProblem:
    return HumanEvalProblem(*texts(decode(line), "task_id", "prompt", "entry_point", "canonical_solution", "test"))


def _pack_instructions(path: Path) -> dict[str, str]:
    """By HumanEval's task ids; the Pack's own are `Python/<n>`. Empty without the file."""
    if not path.is_file():
        return {}
    rows = strict(numbered_lines(path), lambda line: texts(decode(line), "task_id", "instruction"))
    return {task.replace("Python/", "HumanEval/"): instruction for task, instruction in rows}


def locate_benchmark(benchmark: DictConfig, data: Path | str | None, cache_dir: Path | str) -> Path:
    """The folder of a benchmark's original files, for its `load_` function, downloaded once if `data` is None.

    benchmark: a config of configs/benchmark (its `source` is read)
    Raises as `sources.locate` and `sources.find_files`
    """
    root = locate(benchmark.source, data, Path(cache_dir))
    find_files(benchmark.source, root)
    return root
