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
from data_prep.benchmarks import agreeing
from data_prep.sources import find_files, locate
from eval import benchmarks
from eval.benchmarks import Prompting, gsm8k, mmlu, tydiqa

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
FIELDS = dict.fromkeys(("task_id", "prompt", "entry_point", "canonical_solution", "test"), "x")
FOLDERS = {"mmlu": "mmlu", "bbh": "bbh", "gsm8k": "gsm8k", "tydiqa": "tydiqa", "humaneval": "codex_humaneval"}
BOM = b"\xef\xbb\xbf"


def config(name):
    files = {"evaluation": "evaluation/default.yaml", "benchmark": f"benchmark/{name}.yaml"}  # it refers to evaluation
    whole = OmegaConf.create({key: OmegaConf.load(ROOT / "configs" / file) for key, file in files.items()})
    return OmegaConf.to_container(whole.benchmark, resolve=True)


def load(name, root, **accepted):
    """What the module of a benchmark reads below `root`. accepted: other names of files, by role"""
    found = config(name)
    source = OmegaConf.create(found["source"] | {"files": found["source"]["files"] | accepted})
    return benchmarks.load(found, find_files(source, root))


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
        raw = load(name, locate(OmegaConf.create(found["source"]), shared / "data", tmp_path))
    assert caplog.text == ""  # the published number of items
    assert raw.label == (found["title"] if name != "tydiqa" else "XQuAD")


def test_real_bbh_has_27_tasks_with_prompt_files(shared):
    tasks = load("bbh", shared / "data/eval/bbh").tasks
    assert len(tasks) == 27
    assert {len(task.examples) for task in tasks.values()} == {250, 187, 146, 178}
    assert {task.shots.count("\nQ: ") for task in tasks.values()} == {3}
    assert not any("canary" in task.shots for task in tasks.values())


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
@pytest.mark.parametrize("name", FOLDERS)
def test_marks_and_line_ends_of_editors_change_nothing(copied, name, change):
    """Inside quoted cells of MMLU, too: 1,127 of its 14,042 items have line ends there."""
    for path in text_files(copied / FOLDERS[name]):
        path.write_bytes(CHANGES[change](path.read_bytes()))
    assert load(name, copied / FOLDERS[name]) == load(name, FIXTURES / "eval" / FOLDERS[name])


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


@pytest.mark.parametrize("name", FOLDERS)
def test_what_systems_leave_beside_files_is_left_out(copied, name):
    for path in text_files(copied / FOLDERS[name]):
        for dropping in (f"._{path.name}", f"~${path.name}", f"Copy of {path.name}", f"{path.stem} (1){path.suffix}"):
            path.with_name(dropping).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
        path.with_name(".DS_Store").write_bytes(b"\0")
        path.with_name("Thumbs.db").write_bytes(b"\0")
        path.with_name(f"{path.name}~").write_text("old", encoding="utf-8")
    assert load(name, copied / FOLDERS[name]) == load(name, FIXTURES / "eval" / FOLDERS[name])


def test_a_file_packed_and_unpacked_must_be_the_same(copied):
    root = copied / "codex_humaneval"
    packed = root / "HumanEval.jsonl.gz"
    unpacked = gzip.decompress(packed.read_bytes())
    (root / "HumanEval.jsonl").write_bytes(unpacked)
    assert agreeing(packed) == packed
    assert load("humaneval", root).problems
    (root / "HumanEval.jsonl").write_bytes(unpacked.replace(b"twice", b"thrice"))
    with pytest.raises(ValueError, match=r"HumanEval\.jsonl\.gz and .*HumanEval\.jsonl differ; remove the one"):
        load("humaneval", root)
    packed.unlink()
    assert "thrice" in load("humaneval", root).problems[0].prompt


# small files


def test_mmlu_cells_are_text_as_is(tmp_path):
    rows = '"What, is\nit?",None,0.10,NA," x ",C\nplain,a,b,c,"d ""quoted""",A\n'
    for split in ("dev", "test"):
        write(tmp_path / split / f"high_school_x_{split}.csv", rows)
    raw = load("mmlu", tmp_path)
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
        load("mmlu", tmp_path)


def test_mmlu_needs_the_dev_file_of_every_subject(tmp_path):
    write(tmp_path / "dev/y_dev.csv", "q,a,b,c,d,A\n")
    write(tmp_path / "test/x_test.csv", "q,a,b,c,d,A\n")
    with pytest.raises(
        FileNotFoundError, match=r"dev has no x_dev\.csv: every MMLU subject needs a dev and a test file"
    ):
        load("mmlu", tmp_path)


WORKED = "Q: One?\nA: Hm. So the answer is no.\n\n"
WHOLE = f"canary\n---\nSay it.\n\n{WORKED * 3}"


def test_bbh_needs_the_prompt_file_and_the_fields_of_every_task(tmp_path):
    write(tmp_path / "bbh/snarks.json", {"examples": [{"input": "a", "target": "b"}, {"input": "a"}]})
    write(tmp_path / "cot-prompts/others.txt", WHOLE)
    with pytest.raises(FileNotFoundError, match=r"cot-prompts has no snarks\.txt"):
        load("bbh", tmp_path)
    write(tmp_path / "cot-prompts/snarks.txt", WHOLE)
    with pytest.raises(ValueError, match=r"bbh/snarks\.json\[1\]: field 'target' is missing"):
        load("bbh", tmp_path)
    write(tmp_path / "bbh/snarks.json", {"examples": [{"input": "a", "target": " "}]})
    with pytest.raises(ValueError, match=r"bbh/snarks\.json\[0\]: field 'target' is empty"):
        load("bbh", tmp_path)


@pytest.mark.parametrize(
    "prompt_file, text",
    [
        (WHOLE[: WHOLE.rindex("Q:")], "3 worked examples are needed, the last with a period; it has 2"),
        (WHOLE + WORKED, "it has 4"),
        (WHOLE.rstrip().removesuffix("o."), "the last with a period; it has 3"),
        (WHOLE[: WHOLE.rindex("A:")], "needs 'A:' and 'So the answer is'; this one has not: 'Q: One"),
        (WHOLE[: WHOLE.rindex("So")], "needs 'A:' and 'So the answer is'; this one has not: 'Q: One"),
        ("", "it has 0"),
        ("canary\n---", "it has 0"),
    ],
)
def test_a_bbh_prompt_file_that_is_not_whole_is_named(tmp_path, prompt_file, text):
    write(tmp_path / "bbh/snarks.json", {"examples": [{"input": "a", "target": "b"}]})
    write(tmp_path / "cot-prompts/snarks.txt", prompt_file)
    with pytest.raises(ValueError, match=rf"cot-prompts/snarks\.txt: .*{text}.*; download the file again\."):
        load("bbh", tmp_path)


def test_a_whole_bbh_prompt_file_gives_three_shots(tmp_path):
    write(tmp_path / "bbh/snarks.json", {"examples": [{"input": "a", "target": "b"}]})
    write(tmp_path / "cot-prompts/snarks.txt", WHOLE)
    assert load("bbh", tmp_path).tasks["snarks"].shots == "\n\n".join(["Say it.", *["Q: One?\nA: no."] * 3])


def test_the_gold_of_gsm8k_is_the_number(tmp_path):
    write(tmp_path / "test.jsonl", '{"question": " q ", "answer": "a\\n#### 1,000"}\n')
    assert load("gsm8k", tmp_path).test == (gsm8k.Question(" q ", "1000"),)


@pytest.mark.parametrize(
    "row, text",
    [
        ('{"question": "q"}', "field 'answer' is missing"),
        ('{"question": "q", "answer": "42"}', "an answer needs '####' and a number; this one is '42'"),
        ('{"question": "q", "answer": "a\\n#### "}', "needs '####' and a number"),
        ('{"question": "q", "answer": "a\\n#### $"}', "needs '####' and a number"),
    ],
)
def test_gsm8k_names_the_broken_line(tmp_path, row, text):
    """An answer that is empty without punctuation would be that of an empty output."""
    write(tmp_path / "test.jsonl", f'{{"question": "q", "answer": "#### 1"}}\n{row}\n')
    with pytest.raises(ValueError, match=rf"test\.jsonl:2: .*{text}.*; download the file again"):
        load("gsm8k", tmp_path)


def test_tydiqa_languages_are_id_prefixes_and_the_stand_in_is_labelled(tmp_path, caplog):
    write_tydiqa(tmp_path, ("finnish-12-0", ["a", " b"]), ("swahili--7", ["c"]))
    raw = load("tydiqa", tmp_path)
    assert raw.label == "TyDi QA"
    assert "TyDi QA has 2 items here, 5077 as published" in caplog.text
    assert raw.dev[0] == tydiqa.Question("finnish-12-0", "finnish", "some context ", "finnish-12-0?", ("a", " b"))
    assert raw.dev[1].language == "swahili"
    caplog.clear()
    write_tydiqa(tmp_path, ("english-xquad-12", ["a"]))
    assert load("tydiqa", tmp_path).label == "XQuAD"
    assert caplog.text == ""


@pytest.mark.parametrize("answers", [[], ["a", " "]])
def test_tydiqa_names_a_question_without_answer(tmp_path, answers):
    write_tydiqa(tmp_path, ("finnish-1", answers))
    with pytest.raises(ValueError, match=r"train\.json\[0\]: question 'finnish-1' has no answer, or an empty one"):
        load("tydiqa", tmp_path)


@pytest.mark.parametrize("packed", [True, False])
def test_humaneval_is_read_packed_or_not(tmp_path, packed):
    line = (json.dumps(FIELDS) + "\n").encode()
    path = tmp_path / ("HumanEval.jsonl.gz" if packed else "HumanEval.jsonl")
    path.write_bytes(gzip.compress(line) if packed else line)
    (problem,) = load("humaneval", tmp_path).problems
    assert vars(problem) == FIELDS | {"instruction": None}


def test_humanevalpack_adds_its_instruction_where_it_is(tmp_path):
    write(tmp_path / "HumanEval.jsonl", json.dumps(FIELDS | {"task_id": "HumanEval/3"}) + "\n")
    write(tmp_path / "humanevalpack.jsonl", json.dumps({"task_id": "Python/3", "instruction": " Do it. "}) + "\n")
    (problem,) = load("humaneval", tmp_path).problems
    assert problem.instruction == " Do it. "


@pytest.mark.parametrize("rows", [[], [("JavaScript/3", "Do it.")], [("Python/4", "Do it.")]])
def test_a_humanevalpack_that_lacks_a_problem_is_refused(tmp_path, rows):
    """Another language, or a file that was cut: the prompt would be the one without the Pack."""
    write(tmp_path / "HumanEval.jsonl", json.dumps(FIELDS | {"task_id": "HumanEval/3"}) + "\n")
    lines = [json.dumps({"task_id": task, "instruction": text}) + "\n" for task, text in rows]
    write(tmp_path / "humanevalpack.jsonl", "".join(lines))
    message = r"humanevalpack\.jsonl has no instruction for HumanEval/3: use the whole Python part of HumanEvalPack"
    with pytest.raises(ValueError, match=message):
        load("humaneval", tmp_path)


def test_mmlu_skips_blank_lines(tmp_path):
    for split in ("dev", "test"):
        write(tmp_path / split / f"x_{split}.csv", "\nq,a,b,c,d,A\n\n\r\nq,a,b,c,d,B\n\n")
    assert [question.answer for question in load("mmlu", tmp_path).test["x"]] == ["A", "B"]


def test_more_shots_than_there_are_are_refused(tmp_path):
    for split in ("dev", "test"):
        write(tmp_path / split / f"x_{split}.csv", "q,a,b,c,d,A\n")
    with pytest.raises(ValueError, match="MMLU needs 2 dev questions in x as shots; the file has 1"):
        mmlu.items(load("mmlu", tmp_path), None, Prompting(chat=True, letters=tuple("ABCD"), shots=2))
    with pytest.raises(ValueError, match="GSM8K has 8 worked examples, not 16"):
        gsm8k.items(gsm8k.GSM8K(()), None, Prompting(chat=True, shots=16))


@pytest.mark.parametrize(
    "name, mine",
    [
        ("mmlu", {"dev": ["mine/*.csv"], "test": ["asked/*.csv"]}),
        ("bbh", {"examples": ["tasks/*.json"], "prompts": ["shots/*.txt"]}),
        ("gsm8k", {"test": ["test.jsonl.old", "mine/sums.jsonl"]}),
        ("tydiqa", {"train": ["mine/train.json"], "dev": ["mine/dev.json"]}),
        ("humaneval", {"problems": ["mine.jsonl.gz"]}),
        ("arc_challenge", {"train": ["mine/train.parquet"], "test": ["mine/test.parquet"]}),
        ("mmlu_pro", {"validation": ["mine/validation.parquet"], "test": ["mine/test.parquet"]}),
    ],
)
def test_files_of_other_names_are_read(tmp_path, name, mine):
    """docs/data.md: add them to the list of their role."""
    source = config(name)["source"]
    fixture = FIXTURES / source["folder"]
    for role, paths in find_files(OmegaConf.create(source), fixture).items():
        for path in paths:
            target = tmp_path / mine[role][-1].replace("*", path.stem)
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
    assert load(name, tmp_path, **mine) == load(name, fixture)


def test_the_first_name_of_a_role_is_the_one_that_is_read(tmp_path):
    for name in ("mine", "test"):
        write(tmp_path / f"{name}.jsonl", json.dumps({"question": name, "answer": "#### 1"}))
    (question,) = load("gsm8k", tmp_path, test=["mine.jsonl", "test.jsonl"]).test
    assert question.question == "mine"


@pytest.mark.parametrize("name", benchmarks.names())
def test_missing_files_are_named(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No .* \(.*\) in .*docs/data\.md"):
        load(name, tmp_path)
