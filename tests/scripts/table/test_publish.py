"""Publishing results: complete provenance or one sentence, and nothing lost."""

import json
from pathlib import Path
from typing import Any

import pytest

import scripts.publish
from scripts.table.publish import PUBLISHED, publish, results_to_read

HEAD = "table,source,label,rank,method,r,params,won,seed,column,value\n"
TRAINING = {
    "python": "3.11", "versions": {}, "git": "a" * 40, "code": {"mos": "1"}, "hardware": {}, "started": "x",
    "finished": "y",
}  # fmt: skip


def results(folder: Path, seeds: tuple[int, ...] = (0,), **training: Any) -> Path:
    """Table 1 of one method, with a cell for each seed."""
    lines = [f"table1,measured,LoRA,2,lora_r2,2,9,True,{seed},avg,1.0\n" for seed in (*seeds, "mean")]
    (folder / "cells" / "tiny").mkdir(parents=True, exist_ok=True)
    (folder / "table1.csv").write_text(HEAD + "".join(lines), encoding="utf-8")
    (folder / "table1.md").write_text("# Table 1\n", encoding="utf-8")
    for seed in seeds:
        cell = {"method": "lora_r2", "dataset": "cot", "seed": seed, "training": TRAINING | training}
        (folder / "cells" / "tiny" / f"lora_r2-cot-seed{seed}.json").write_text(json.dumps(cell), encoding="utf-8")
    return folder


def test_tables_and_cells_are_copied_and_other_tables_stay(tmp_path: Path) -> None:
    target = tmp_path / "published"
    target.mkdir()
    (target / "table3.csv").write_text("kept", encoding="utf-8")
    results(tmp_path / "own")
    (tmp_path / "own" / "rates.yaml").write_text("lora_r2: {}\n", encoding="utf-8")
    assert publish(tmp_path / "own", target) == ["table1"]
    assert (target / "rates.yaml").read_text(encoding="utf-8") == "lora_r2: {}\n"
    assert (target / "table1.md").read_text(encoding="utf-8") == "# Table 1\n"
    assert (target / "cells" / "tiny" / "lora_r2-cot-seed0.json").is_file()
    assert (target / "table3.csv").read_text(encoding="utf-8") == "kept"


@pytest.mark.parametrize(
    ("training", "sentence"),
    [
        ({"git": "a" * 40 + "+changes"}, "lora_r2, cot, seed 0 was trained with uncommitted changes"),
        ({"git": None}, "does not record git"),
        ({"code": None, "hardware": None}, "does not record code, hardware"),
    ],
)
def test_incomplete_provenance_is_refused_and_nothing_changes(tmp_path: Path, training: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence.replace("+", r"\+")):
        publish(results(tmp_path / "own", **training), tmp_path / "published")
    assert not (tmp_path / "published").exists()


def test_a_row_without_a_cell_is_refused(tmp_path: Path) -> None:
    own = results(tmp_path / "own")
    (own / "cells" / "tiny" / "lora_r2-cot-seed0.json").unlink()
    with pytest.raises(ValueError, match="no file in cells/ tells how lora_r2 of table1 came about"):
        publish(own, tmp_path / "published")


def test_fewer_seeds_do_not_replace_more(tmp_path: Path) -> None:
    target = tmp_path / "published"
    publish(results(tmp_path / "five", (0, 1, 2)), target)
    before = (target / "table1.csv").read_bytes()
    with pytest.raises(ValueError, match="has the seeds 1, 2 too"):
        publish(results(tmp_path / "one"), target)
    assert (target / "table1.csv").read_bytes() == before


def test_without_a_table_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no table; make one first"):
        publish(tmp_path, tmp_path / "published")


def test_another_experiment_is_published_beside_the_tables_of_the_profile(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(scripts.publish, "PUBLISHED", tmp_path / "published")
    results(tmp_path / "own" / "micro" / "rates=own")
    (tmp_path / "published" / "micro").mkdir(parents=True)
    (tmp_path / "published" / "micro" / "table1.md").write_text("common rate", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["publish", "profile=micro", "rates=own", f"results_dir={tmp_path / 'own'}"])
    scripts.publish.main()
    assert (tmp_path / "published" / "micro" / "rates=own" / "table1.md").is_file()
    assert (tmp_path / "published" / "micro" / "table1.md").read_text(encoding="utf-8") == "common rate"


def test_own_results_are_read_before_the_published_ones(tmp_path: Path) -> None:
    assert results_to_read(tmp_path, "micro") == PUBLISHED / "micro"
    results(tmp_path / "micro")
    assert results_to_read(tmp_path, "micro") == tmp_path / "micro"
