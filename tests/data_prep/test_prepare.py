import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from data_prep import prepare as module
from data_prep import storage
from data_prep.chat import IGNORED, encode
from data_prep.files import Tally
from data_prep.prepare import prepare
from data_prep.readers import flan
from tests.fixtures import make_train

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests/fixtures"
# Of each set in tests/fixtures: rows read, conversations made, and their hash, for prepare.VERSION 1.
SETS = {
    "super_ni": (68, 68, "22d3a986a5ca1ffed2b07347e3a53e924afef907925f41afa2b8864d1ecdf10e"),
    "flan_v2": (12, 12, "f217c8fe03a4dc13eb5561949f225c8c9e5d51095aa10a55d0fe5c480a4b5936"),
    "cot": (13, 13, "4efc61a3d3e97fe531c2af2415b5c94d8bef4cd867f2f3819e4f755398990863"),
    "code_alpaca": (10, 10, "3794437fba285457fa323ab6d3bf73e2fe13832368069e3fe2bebe7533bd9ea1"),
}
DATASETS = ["super_ni", "flan_v2", "cot", "code_alpaca"]


def config(name, **changes):
    return OmegaConf.merge(OmegaConf.load(ROOT / "configs" / "dataset" / f"{name}.yaml"), changes)


def write_cot(folder, rows=40):
    (folder / "train/cot").mkdir(parents=True, exist_ok=True)
    for kind in ("zs", "fs"):
        lines = (json.dumps({"inputs": f"{kind} {i} plus {i}", "targets": f"It is {2 * i}."}) for i in range(rows))
        (folder / f"train/cot/cot_{kind}opt.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def data(tmp_path):
    return write_cot(tmp_path / "data")


@pytest.fixture
def call(data, tmp_path, byte_tokenizer):
    """`prepare` on the small cot set; keywords replace its arguments."""

    def run(dataset=None, tokenizer=byte_tokenizer, **changes):
        arguments = {"data": data, "max_length": 128, "validation_size": 8, "cache_dir": tmp_path / "cache"} | changes
        return prepare(dataset or config("cot"), tokenizer, **arguments)

    return run


def examples(split):
    return [(row["input_ids"], row["labels"]) for row in split]


def test_examples_are_those_of_the_reader_encoded_and_split(call, data, byte_tokenizer):
    prepared = call()
    files = {
        role: [data / f"train/cot/cot_{kind}opt.jsonl"] for role, kind in (("zero_shot", "zs"), ("few_shot", "fs"))
    }
    rows = flan.read_cot(files, Tally(), per_file=50_000)
    expected = [tuple(encode(row["messages"], byte_tokenizer, 128).values()) for row in rows]
    assert prepared.train.column_names == prepared.validation.column_names == ["input_ids", "labels"]
    assert len(prepared.validation) == 8
    assert sorted(examples(prepared.train) + examples(prepared.validation)) == sorted(expected)


def test_the_report_counts(call):
    prepared = call()
    everything = examples(prepared.train) + examples(prepared.validation)
    assert prepared.report == {
        "lines": 80,
        "broken": 0,
        "examples": 80,
        "dropped": 0,
        "truncated": 0,
        "tokens": sum(len(ids) for ids, _ in everything),
        "labelled_tokens": sum(label != IGNORED for _, labels in everything for label in labels),
        "train": 72,
        "validation": 8,
        "broken_rows": [],
    }


def test_examples_without_a_label_are_dropped_and_cut_ones_kept(tmp_path, byte_tokenizer):
    long, short = "many words " * 30, "few"
    talks = [(short, short), (short, long), (long, short), (short, short)]
    path = tmp_path / "m.jsonl"
    roles = ("user", "assistant")
    rows = [{"messages": [{"role": r, "content": c} for r, c in zip(roles, talk, strict=True)]} for talk in talks]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    dataset = config("cot", source={"messages": str(path)})
    prepared = prepare(dataset, byte_tokenizer, data=None, max_length=60, validation_size=1, cache_dir=tmp_path / "c")
    report = prepared.report
    assert (report["examples"], report["dropped"], report["truncated"]) == (4, 1, 1)
    lengths = [len(ids) for ids, _ in examples(prepared.train) + examples(prepared.validation)]
    assert max(lengths) == 60
    assert all(set(labels) != {IGNORED} for _, labels in examples(prepared.train) + examples(prepared.validation))


def test_a_second_call_reads_no_raw_file(call, monkeypatch):
    first = call()
    for name in ("_read", "_encode", "_save"):
        monkeypatch.setattr(module, name, None)
    monkeypatch.setattr("data_prep.storage.sha256", None)
    second = call()
    assert (second.key, second.report) == (first.key, first.report)
    assert examples(second.train) == examples(first.train)


def test_the_number_of_processes_changes_nothing(call, tmp_path):
    one, two = (call(processes=n, cache_dir=tmp_path / str(n)) for n in (1, 2))
    assert (one.key, one.report) == (two.key, two.report)
    assert examples(one.train) == examples(two.train)
    assert examples(one.validation) == examples(two.validation)


def test_the_key_follows_everything_that_determines_the_content(call, data, tmp_path, llama_tokenizer, monkeypatch):
    keys = {
        "as is": call().key,
        "tokenizer": call(tokenizer=llama_tokenizer).key,
        "length": call(max_length=64).key,
        "validation": call(validation_size=9).key,
        "reader": call(config("cot", reader={"per_file": 30})).key,
        "share": call(config("cot", max_broken_share=0.5)).key,
    }
    monkeypatch.setattr(module, "VERSION", -1)
    keys["code"] = call().key
    monkeypatch.undo()
    path = data / "train/cot/cot_fsopt.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + '{"inputs": "a", "targets": "b"}\n', encoding="utf-8")
    keys["content"] = call().key
    assert len(set(keys.values())) == len(keys)


def test_the_key_does_not_follow_the_folder_or_the_last_call_of_the_tokenizer(call, tmp_path, byte_tokenizer):
    key = call().key
    byte_tokenizer("some text", truncation=True, max_length=2)
    assert call().key == key
    byte_tokenizer.backend_tokenizer.no_truncation()
    assert call(data=write_cot(tmp_path / "copy")).key == key


def test_a_broken_row_is_logged_and_reported_with_file_and_line(call, data, caplog):
    path = data / "train/cot/cot_fsopt.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + '{"inputs": "a"}\n', encoding="utf-8")
    report = call(config("cot", max_broken_share=0.02)).report
    place = f"{path}:41: field 'targets' is missing"
    assert (report["lines"], report["broken"], report["broken_rows"]) == (81, 1, [place])
    assert place in caplog.text


@pytest.mark.parametrize(
    "ending, text",
    [
        ('{"inputs": "a"}\n', r"1 of 81 rows of 'cot' are broken.*cot_fsopt.jsonl:41: field 'targets' is missing"),
        ('{"inputs": "a", "tar', r"cot_fsopt.jsonl is truncated: line 41, its last, is incomplete"),
    ],
)
def test_bad_files_stop_and_write_nothing(call, data, tmp_path, ending, text):
    path = data / "train/cot/cot_fsopt.jsonl"
    path.write_text(path.read_text(encoding="utf-8") + ending, encoding="utf-8")
    with pytest.raises(ValueError, match=text):
        call()
    assert [p for p in (tmp_path / "cache/data").iterdir() if p.suffix != ".lock"] == []


def test_a_missing_file_is_named(call, data):
    (data / "train/cot/cot_fsopt.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"No cot_fsopt.jsonl \(few_shot\) in .*train/cot"):
        call()


def test_a_missing_messages_file_is_named(call):
    with pytest.raises(FileNotFoundError, match=r"dataset.source.messages=/no/such.jsonl is not a file"):
        call(config("cot", source={"messages": "/no/such.jsonl"}))


@pytest.mark.parametrize("size", [0, 80, 1024])
def test_a_validation_size_that_does_not_fit_is_an_error(call, size):
    with pytest.raises(ValueError, match=rf"validation_size={size} does not fit 'cot', which has 80 usable examples"):
        call(validation_size=size)


def conversations(name, data, tmp_path):
    dataset = config(name)
    files, reader = module._raw(dataset, data, tmp_path)
    return module._read(dataset, files, reader)


@pytest.mark.parametrize("name", SETS)
def test_every_set_is_read_from_the_fixture(name, tmp_path):
    """Another hash needs another prepare.VERSION, or prepared data of the old code would be used."""
    found, tally = conversations(name, FIXTURES, tmp_path)
    assert (module.VERSION, tally.broken) == (1, [])
    assert (tally.lines, len(found), storage.digest(found)) == SETS[name]


def as_saved_by_an_editor(source, target):
    """A copy where every text file has a mark in front and other line ends, beside hidden files and backups."""
    for path in (path for path in source.rglob("*") if path.is_file()):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
        for leftover in (f"._{path.name}", f"{path.name}~", f".#{path.name}", f"{path.name}.part"):
            copy.with_name(leftover).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")


@pytest.mark.parametrize("name", SETS)
def test_editors_and_systems_change_nothing(name, tmp_path):
    as_saved_by_an_editor(FIXTURES / "train", tmp_path / "train")
    found, _ = conversations(name, tmp_path, tmp_path)
    assert storage.digest(found) == SETS[name][-1]


def test_the_fixture_is_what_its_program_writes(tmp_path):
    make_train.main(tmp_path)
    kept, made = ({path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
                  for root in (FIXTURES / "train", tmp_path))  # fmt: skip
    assert kept == made


@pytest.mark.parametrize(
    "name, lines, examples",
    [("super_ni", 9600, 16 * 80), ("flan_v2", 3800, 3800), ("cot", 7000, 7000), ("code_alpaca", 2017, 2017)],
)
def test_every_set_is_read_from_the_real_files(name, lines, examples, shared, tmp_path):
    rows, tally = conversations(name, shared / "data", tmp_path)
    assert (tally.lines, tally.broken, len(rows)) == (lines, [], examples)
    assert len({row["id"] for row in rows}) == examples
    assert {tuple(message["role"] for message in row["messages"]) for row in rows} == {("user", "assistant")}


@pytest.mark.parametrize("name", DATASETS)
def test_every_config_names_a_reader_for_its_files(name):
    dataset = config(name)
    assert dataset.name == name
    assert dataset.source.messages is None
    assert all("sha256" in entry for entry in dataset.source.upstream)
    assert callable(module.instantiate(dataset.reader, _partial_=True))
