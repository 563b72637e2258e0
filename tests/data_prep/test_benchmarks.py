"""Original benchmark files: the real ones where they are, small ones, and what editors and systems do to them."""

import csv
import gzip
import io
import json
import logging
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from data_prep import files
from data_prep.benchmarks import existing, only
from data_prep.sources import locate_complete
from eval import benchmarks
from eval.benchmarks import bbh, gsm8k, humaneval, mmlu, tydiqa

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
FIELDS = dict.fromkeys(("task_id", "prompt", "entry_point", "canonical_solution", "test"), "x")
MODULES = {"mmlu": mmlu, "bbh": bbh, "gsm8k": gsm8k, "tydiqa": tydiqa, "codex_humaneval": humaneval}
BOM = b"\xef\xbb\xbf"


def config(name):
    loaded = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "benchmark" / f"{name}.yaml"))
    return loaded | ({"max_new_tokens": 16} if "max_new_tokens" in loaded else {})


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
    found = config(name)
    with caplog.at_level(logging.WARNING):
        root = locate_complete(OmegaConf.create(found["source"]), shared / "data", tmp_path)
        raw = benchmarks.load(found, root)
    assert caplog.text == ""  # the published number of items
    assert raw.label == (found["title"] if name != "tydiqa" else "XQuAD")


def test_real_bbh_has_27_tasks_with_prompt_files(shared):
    tasks = bbh.load(shared / "data/eval/bbh").tasks
    assert len(tasks) == 27
    assert {len(task.examples) for task in tasks.values()} == {250, 187, 146, 178}
    assert all("canary" in task.cot_prompt.partition("\n")[0] for task in tasks.values())


# what editors and systems do to files


@pytest.fixture
def copied(tmp_path):
    """The fixtures of all benchmarks, to be changed."""
    return Path(shutil.copytree(FIXTURES / "eval", tmp_path / "eval"))


def text_files(root):
    return [path for path in root.rglob("*") if path.is_file() and path.suffix in (".csv", ".json", ".jsonl", ".txt")]


CHANGES = {
    "mark": lambda content: BOM + content,
    "CRLF": lambda content: content.replace(b"\n", b"\r\n"),
    "mark and CRLF": lambda content: BOM + content.replace(b"\n", b"\r\n"),
    "CR": lambda content: content.replace(b"\n", b"\r"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", MODULES)
def test_marks_and_line_ends_of_editors_change_nothing(copied, name, change):
    """Inside quoted cells of MMLU, too: 1,127 of its 14,042 items have line ends there."""
    for path in text_files(copied / name):
        path.write_bytes(CHANGES[change](path.read_bytes()))
    assert MODULES[name].load(copied / name) == MODULES[name].load(FIXTURES / "eval" / name)


CELLS = st.text(st.sampled_from('a",\n\r é'), max_size=8)


@given(st.lists(st.lists(CELLS, min_size=6, max_size=6), min_size=1, max_size=4))
def test_cells_come_back_as_they_were_written(tmp_path_factory, rows):
    """MMLU's own files end their rows in LF, and three cells of one file hold CRLF."""
    path = tmp_path_factory.mktemp("csv") / "x.csv"
    buffer = io.StringIO(newline="")
    csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    path.write_bytes(buffer.getvalue().encode())
    assert [row for _, row in files.csv_rows(path)] == rows


def test_a_converted_file_is_named_once_a_folder(tmp_path, caplog):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_bytes(b'"a\r\nb",c\r\n')
        assert list(files.csv_rows(tmp_path / name)) == [(f"{tmp_path / name}:2", ["a\nb", "c"])]
    assert caplog.text.count("line ends") == 1
    assert str(tmp_path) in caplog.text


@pytest.mark.parametrize("name", MODULES)
def test_what_systems_leave_beside_files_is_left_out(copied, name):
    for path in text_files(copied / name):
        for dropping in (f"._{path.name}", f"~${path.name}", f"Copy of {path.name}", f"{path.stem} (1){path.suffix}"):
            path.with_name(dropping).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
        path.with_name(".DS_Store").write_bytes(b"\0")
        path.with_name("Thumbs.db").write_bytes(b"\0")
        path.with_name(f"{path.name}~").write_text("old", encoding="utf-8")
    assert MODULES[name].load(copied / name) == MODULES[name].load(FIXTURES / "eval" / name)


def test_a_file_packed_and_unpacked_must_be_the_same(copied):
    root = copied / "codex_humaneval"
    packed = root / "HumanEval.jsonl.gz"
    unpacked = gzip.decompress(packed.read_bytes())
    (root / "HumanEval.jsonl").write_bytes(unpacked)
    assert only(root, packed.name, "HumanEval.jsonl") == packed
    (root / "HumanEval.jsonl").write_bytes(unpacked.replace(b"twice", b"thrice"))
    with pytest.raises(ValueError, match=r"HumanEval\.jsonl\.gz and .*HumanEval\.jsonl differ; remove the one"):
        humaneval.load(root)
    packed.unlink()
    assert "thrice" in humaneval.load(root).problems[0].prompt


def test_existing_names_the_pattern(tmp_path):
    (tmp_path / "._a.json").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"No '\*\.json' in .*docs/data\.md"):
        existing(tmp_path, "*.json")


# small files


def test_mmlu_cells_are_text_as_is(tmp_path):
    rows = '"What, is\nit?",None,0.10,NA," x ",C\nplain,a,b,c,"d ""quoted""",A\n'
    for split in ("dev", "test"):
        write(tmp_path / split / f"high_school_x_{split}.csv", rows)
    raw = mmlu.load(tmp_path)
    assert raw.test == raw.dev
    first, second = raw.test["high_school_x"]
    assert first == mmlu.Question("What, is\nit?", ("None", "0.10", "NA", " x "), "C")
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
        mmlu.load(tmp_path)


def test_mmlu_needs_the_dev_file_of_every_subject(tmp_path):
    write(tmp_path / "test/x_test.csv", "q,a,b,c,d,A\n")
    with pytest.raises(FileNotFoundError, match=r"dev/x_dev\.csv is missing"):
        mmlu.load(tmp_path)


def test_bbh_needs_the_prompt_file_and_the_fields_of_every_task(tmp_path):
    write(tmp_path / "bbh/snarks.json", {"examples": [{"input": "a", "target": "b"}, {"input": "a"}]})
    with pytest.raises(FileNotFoundError, match=r"cot-prompts/snarks\.txt is missing"):
        bbh.load(tmp_path)
    write(tmp_path / "cot-prompts/snarks.txt", "canary\n")
    with pytest.raises(ValueError, match=r"bbh/snarks\.json\[1\]: field 'target' is missing"):
        bbh.load(tmp_path)


def test_gsm8k_is_raw(tmp_path):
    write(tmp_path / "test.jsonl", '{"question": " q ", "answer": "a\\n#### 1,000"}\n')
    assert gsm8k.load(tmp_path).test == (gsm8k.Question(" q ", "a\n#### 1,000"),)


def test_gsm8k_names_the_broken_line(tmp_path):
    write(tmp_path / "test.jsonl", '{"question": "q", "answer": "a"}\n{"question": "q"}\n')
    with pytest.raises(ValueError, match=r"test\.jsonl:2: field 'answer' is missing"):
        gsm8k.load(tmp_path)


def test_tydiqa_languages_are_id_prefixes_and_the_stand_in_is_labelled(tmp_path, caplog):
    write_tydiqa(tmp_path, ("finnish-12-0", ["a", " b"]), ("swahili--7", ["c"]))
    raw = benchmarks.load(config("tydiqa"), tmp_path)
    assert raw.label == "TyDi QA"
    assert "TyDi QA has 2 items here, 5077 as published" in caplog.text
    assert raw.dev[0] == tydiqa.Question("finnish-12-0", "finnish", "some context ", "finnish-12-0?", ("a", " b"))
    assert raw.dev[1].language == "swahili"
    caplog.clear()
    write_tydiqa(tmp_path, ("english-xquad-12", ["a"]))
    assert benchmarks.load(config("tydiqa"), tmp_path).label == "XQuAD"
    assert caplog.text == ""


def test_tydiqa_names_a_question_without_answer(tmp_path):
    write_tydiqa(tmp_path, ("finnish-1", []))
    with pytest.raises(ValueError, match=r"train\.json\[0\]: question 'finnish-1' has no answer"):
        tydiqa.load(tmp_path)


@pytest.mark.parametrize("packed", [True, False])
def test_humaneval_is_read_packed_or_not(tmp_path, packed):
    line = (json.dumps(FIELDS) + "\n").encode()
    path = tmp_path / ("HumanEval.jsonl.gz" if packed else "HumanEval.jsonl")
    path.write_bytes(gzip.compress(line) if packed else line)
    (problem,) = humaneval.load(tmp_path).problems
    assert vars(problem) == FIELDS | {"instruction": None}


def test_humanevalpack_adds_its_instruction_where_it_is(tmp_path):
    write(tmp_path / "HumanEval.jsonl", json.dumps(FIELDS | {"task_id": "HumanEval/3"}) + "\n")
    write(tmp_path / "humanevalpack.jsonl", json.dumps({"task_id": "Python/3", "instruction": " Do it. "}) + "\n")
    (problem,) = humaneval.load(tmp_path).problems
    assert problem.instruction == " Do it. "


@pytest.mark.parametrize("name", benchmarks.names())
def test_missing_files_are_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No '.*' in .*docs/data\.md"):
        benchmarks.load(config(name), tmp_path)
