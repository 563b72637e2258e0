import gzip
import json
import logging
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from data_prep import benchmarks

ROOT = Path(__file__).resolve().parents[2]
HUMANEVAL = dict.fromkeys(("task_id", "prompt", "entry_point", "canonical_solution", "test"), "x")


def config(name):
    return OmegaConf.load(ROOT / "configs" / "benchmark" / f"{name}.yaml")


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def squad(*questions):
    """questions: (id, answers)"""
    qas = [{"id": id_, "question": f"{id_}?", "answers": [{"text": a} for a in answers]} for id_, answers in questions]
    return {"data": [{"paragraphs": [{"context": "some context ", "qas": qas}]}]}


def write_tydiqa(root, *questions):
    for split in ("train", "dev"):
        write(root / f"tydiqa-goldp-v1.1-{split}.json", squad(*questions))


# real files


@pytest.mark.parametrize("name", ["mmlu", "bbh", "gsm8k", "tydiqa", "humaneval"])
def test_the_real_files_are_found_and_complete(name, shared, tmp_path, caplog):
    root = benchmarks.locate_benchmark(config(name), shared / "data", tmp_path)
    with caplog.at_level(logging.WARNING):
        raw = getattr(benchmarks, f"load_{name}")(root)
    assert caplog.text == ""  # the published number of items
    assert (
        raw.label == {"mmlu": "MMLU", "bbh": "BBH", "gsm8k": "GSM8K", "tydiqa": "XQuAD", "humaneval": "HumanEval"}[name]
    )


def test_real_bbh_has_27_tasks_with_prompt_files(shared):
    tasks = benchmarks.load_bbh(shared / "data/eval/bbh").tasks
    assert len(tasks) == 27
    assert {len(task.examples) for task in tasks.values()} == {250, 187, 146, 178}
    assert all("canary" in task.cot_prompt.partition("\n")[0] for task in tasks.values())


# small files


def test_mmlu_cells_are_text_as_is(tmp_path):
    rows = '"What, is\nit?",None,0.10,NA," x ",C\nplain,a,b,c,"d ""quoted""",A\n'
    for split in ("dev", "test"):
        write(tmp_path / split / f"high_school_x_{split}.csv", rows)
    raw = benchmarks.load_mmlu(tmp_path)
    assert raw.test == raw.dev
    first, second = raw.test["high_school_x"]
    assert first == benchmarks.MMLUQuestion("What, is\nit?", ("None", "0.10", "NA", " x "), "C")
    assert second.choices[3] == 'd "quoted"'


@pytest.mark.parametrize(
    "rows, text",
    [
        (
            "q,a,b,c,d,A\nq,a,b,c,d\n",
            r"x_test\.csv:2: question, four choices and a letter A to D are needed, got 5 cells",
        ),
        ("q,a,b,c,d,E\n", r"x_test\.csv:1: .*ending \['E'\]"),
        ('q,a,b,c,d,A\n"q,a,b', r"x_test\.csv:2: unexpected end of data; download the file again"),
    ],
)
def test_mmlu_names_the_broken_line(tmp_path, rows, text):
    write(tmp_path / "dev/x_dev.csv", "q,a,b,c,d,A\n")
    write(tmp_path / "test/x_test.csv", rows)
    with pytest.raises(ValueError, match=text):
        benchmarks.load_mmlu(tmp_path)


def test_mmlu_needs_the_dev_file_of_every_subject(tmp_path):
    write(tmp_path / "test/x_test.csv", "q,a,b,c,d,A\n")
    with pytest.raises(FileNotFoundError, match=r"dev/x_dev\.csv is missing"):
        benchmarks.load_mmlu(tmp_path)


def test_bbh_needs_the_prompt_file_and_the_fields_of_every_task(tmp_path):
    write(tmp_path / "bbh/snarks.json", {"examples": [{"input": "a", "target": "b"}, {"input": "a"}]})
    with pytest.raises(FileNotFoundError, match=r"cot-prompts/snarks\.txt is missing"):
        benchmarks.load_bbh(tmp_path)
    write(tmp_path / "cot-prompts/snarks.txt", "canary\n")
    with pytest.raises(ValueError, match=r"bbh/snarks\.json\[1\]: field 'target' is missing"):
        benchmarks.load_bbh(tmp_path)


def test_gsm8k_is_raw_and_an_unexpected_number_of_items_is_a_warning(tmp_path, caplog):
    write(tmp_path / "test.jsonl", '{"question": " q ", "answer": "a\\n#### 1,000"}\n')
    assert benchmarks.load_gsm8k(tmp_path).test == (benchmarks.GSM8KQuestion(" q ", "a\n#### 1,000"),)
    assert "GSM8K has 1 items here, 1319 as published" in caplog.text


def test_gsm8k_names_the_broken_line(tmp_path):
    write(tmp_path / "test.jsonl", '{"question": "q", "answer": "a"}\n{"question": "q"}\n')
    with pytest.raises(ValueError, match=r"test\.jsonl:2: field 'answer' is missing"):
        benchmarks.load_gsm8k(tmp_path)


def test_tydiqa_languages_are_id_prefixes_and_the_stand_in_is_labelled(tmp_path):
    write_tydiqa(tmp_path, ("finnish-12-0", ["a", " b"]), ("swahili--7", ["c"]))
    raw = benchmarks.load_tydiqa(tmp_path)
    assert raw.label == "TyDi QA"
    assert raw.dev[0] == benchmarks.TyDiQuestion(
        "finnish-12-0", "finnish", "some context ", "finnish-12-0?", ("a", " b")
    )
    assert raw.dev[1].language == "swahili"
    write_tydiqa(tmp_path, ("english-xquad-12", ["a"]))
    assert benchmarks.load_tydiqa(tmp_path).label == "XQuAD"


def test_tydiqa_names_a_question_without_answer(tmp_path):
    write_tydiqa(tmp_path, ("finnish-1", []))
    with pytest.raises(ValueError, match=r"train\.json\[0\]: question 'finnish-1' has no answer"):
        benchmarks.load_tydiqa(tmp_path)


@pytest.mark.parametrize("packed", [True, False])
def test_humaneval_is_read_packed_or_not(tmp_path, packed):
    line = (json.dumps(HUMANEVAL) + "\n").encode()
    path = tmp_path / ("HumanEval.jsonl.gz" if packed else "HumanEval.jsonl")
    path.write_bytes(gzip.compress(line) if packed else line)
    (problem,) = benchmarks.load_humaneval(tmp_path).problems
    assert vars(problem) == HUMANEVAL | {"instruction": None}


def test_humanevalpack_adds_its_instruction_where_it_is(tmp_path):
    write(tmp_path / "HumanEval.jsonl", json.dumps(HUMANEVAL | {"task_id": "HumanEval/3"}) + "\n")
    write(tmp_path / "humanevalpack.jsonl", json.dumps({"task_id": "Python/3", "instruction": " Do it. "}) + "\n")
    (problem,) = benchmarks.load_humaneval(tmp_path).problems
    assert problem.instruction == " Do it. "


@pytest.mark.parametrize("name", ["mmlu", "bbh", "gsm8k", "tydiqa", "humaneval"])
def test_missing_files_are_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No '.*' in .*docs/data\.md"):
        getattr(benchmarks, f"load_{name}")(tmp_path)
