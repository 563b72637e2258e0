"""Any folder can be `data` and `cache_dir`, and nothing is written to `data` or to the home folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from data_prep.prepare import prepare

ROOT = Path(__file__).resolve().parents[2]
NAMES = [
    "a,b", "k=v", "p(1)", "día", "数据", "a#b", "it's", 'a"b', "cash$HOME", "with space", "br[ack]ets", "[!x]", "star*",
    "why?", "{curly}", "~tilde", "100%", "back\\slash", "-dash", "semi;colon", "http:", "file.json", "${x}",
]  # fmt: skip


def write_cot(folder, rows=20):
    (folder / "train/cot").mkdir(parents=True)
    for kind in ("zs", "fs"):
        lines = (json.dumps({"inputs": f"{kind} {i} plus {i}", "targets": f"It is {2 * i}."}) for i in range(rows))
        (folder / f"train/cot/cot_{kind}opt.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def prepared(byte_tokenizer):
    """Prepares the small cot set of `data` in `cache`, twice: made, then loaded. Returns its key."""

    def run(data, cache):
        dataset = OmegaConf.load(ROOT / "configs/dataset/cot.yaml")
        sizes = {"max_length": 64, "validation_size": 4}
        first, again = (prepare(dataset, byte_tokenizer, data=data, cache_dir=cache, **sizes) for _ in range(2))
        assert first.train.to_list() == again.train.to_list()
        assert (len(first.train), len(first.validation)) == (36, 4)
        return first.key

    return run


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name(tmp_path, prepared, name):
    prepared(write_cot(tmp_path / name / "data"), tmp_path / name / "cache")


@pytest.mark.parametrize("name", ["cache", "~cache", "[x]"])
def test_relative_folders(tmp_path, prepared, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_cot(tmp_path / name)
    prepared(name, name)
    assert (tmp_path / name / "data").is_dir()


def test_the_one_name_that_cannot_be_is_refused(tmp_path, prepared):
    with pytest.raises(ValueError, match=r"cache_dir=.*a::b/cache: datasets takes '::' for a chain of addresses"):
        prepared(write_cot(tmp_path / "a::b/data"), tmp_path / "a::b/cache")
    assert list(tmp_path.iterdir()) == [tmp_path / "a::b"]


def test_links(tmp_path, prepared):
    real, link = tmp_path / "real", tmp_path / "link"
    write_cot(real / "data")
    (real / "cache").mkdir()
    link.symlink_to(real)
    assert prepared(link / "data", link / "cache") == prepared(real / "data", real / "cache")
    assert len(list((real / "cache/data").glob("cot-*[!k]"))) == 1


def everything(folder):
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def test_a_read_only_data_folder_stays_as_it_is(tmp_path, prepared):
    data = write_cot(tmp_path / "data")
    for folder in [data, *(path for path in data.rglob("*") if path.is_dir())]:
        folder.chmod(0o555)
    before = everything(data)
    prepared(data, tmp_path / "cache")
    assert everything(data) == before


PROGRAM = """
import sys
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from data_prep.prepare import prepare
data, cache, tokenizer = sys.argv[1:]
dataset = OmegaConf.load("configs/dataset/cot.yaml")
sizes = {"max_length": 64, "validation_size": 4}
prepared = prepare(dataset, AutoTokenizer.from_pretrained(tokenizer), data=data, cache_dir=cache, **sizes)
print(prepared.key, sum(map(sum, prepared.train["input_ids"])))
"""


@pytest.fixture
def start(tmp_path, byte_tokenizer):
    """Starts a process that prepares `tmp_path/data` in `tmp_path/cache`; keywords change its environment."""
    byte_tokenizer.save_pretrained(tmp_path / "tokenizer")
    write_cot(tmp_path / "data")

    def run(**env):
        command = [sys.executable, "-c", PROGRAM, *(str(tmp_path / name) for name in ("data", "cache", "tokenizer"))]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=ROOT, env=os.environ | env, **pipes)

    return run


def test_two_processes_without_a_home_prepare_one_set(start, tmp_path):
    both = [start(HOME="/proc/none", HF_HOME="", XDG_CACHE_HOME="") for _ in range(2)]
    answers, errors = zip(*(process.communicate(timeout=300) for process in both), strict=True)
    assert [process.returncode for process in both] == [0, 0], errors
    assert len(set(answers)) == 1 and len(answers[0].split()) == 2
    assert len(list((tmp_path / "cache/data").glob("cot-*[!k]"))) == 1
