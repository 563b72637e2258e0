"""What a key is made of: versions and content, not addresses; and how code that has changed is noticed."""

import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from data_prep import code
from data_prep.download import raw_folder
from scripts.cell import runs
from scripts.config import ROOT, compose

FILES = ("cot_zsopt.jsonl", "cot_fsopt.jsonl")


def key(*overrides: str) -> str:
    return runs.run_dir(compose(["profile=smol", "dataset=cot", *overrides])).name.rpartition("-")[2]


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `mos`, whose key `code_key` gives."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "mos", folder / "mos")
    monkeypatch.setattr(code, "__file__", str(folder / "data_prep" / "code.py"))
    code.code_key.cache_clear()
    yield folder / "mos"
    code.code_key.cache_clear()


def test_other_code_is_noticed_and_other_prose_is_not(copied: Path) -> None:
    before = code.code_key("mos")
    shards = copied / "shards.py"
    text = shards.read_text(encoding="utf-8")
    code.code_key.cache_clear()
    shards.write_text(text.replace('"""', '"""Said otherwise. ', 1) + "\n# a remark\n", encoding="utf-8")
    assert code.code_key("mos") == before
    code.code_key.cache_clear()
    assert "return 1 / math.sqrt(in_features)" in text
    shards.write_text(text.replace("return 1 / math.sqrt", "return 2 / math.sqrt"), encoding="utf-8")
    assert code.code_key("mos") != before


def test_a_raised_version_gives_new_keys() -> None:
    assert key("method=mos", "method.version=2") != key("method=mos")
    assert key("method=mos_r16", "method.version=2") != key("method=mos_r16")
    assert key("method=lora") == key("method=lora", "method.version=1")


def test_pinning_a_checksum_changes_no_key_and_other_content_does(tmp_path: Path) -> None:
    place = f"cache_dir={tmp_path}"
    source = compose(["profile=smol", "dataset=cot", place]).dataset.source
    provisional = key(place)
    folder = raw_folder(source, tmp_path)
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text("{}\n", encoding="utf-8")
    before = key(place)
    upstream = [dict(entry, sha256="0" * 64) for entry in OmegaConf.to_container(source.upstream)]
    entries = [",".join(f"{k}:'{v}'" for k, v in entry.items()) for entry in upstream]
    pinned = f"dataset.source.upstream=[{','.join(f'{{{entry}}}' for entry in entries)}]"
    assert key(place, pinned) == before != provisional
    (folder / FILES[0]).write_text('{"inputs": "other"}\n', encoding="utf-8")
    assert key(place) != before


def test_an_address_that_changes_gives_the_same_key_for_the_same_files(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "train" / "cot"
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).write_text("{}\n", encoding="utf-8")
    place = [f"cache_dir={tmp_path / 'cache'}", f"data={tmp_path / 'data'}"]
    moved = "dataset.source.upstream=[{url:'http://elsewhere/x',to:x,sha256:null}]"
    assert key(*place, moved) == key(*place)
