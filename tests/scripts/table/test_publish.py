"""Publishing results: complete provenance or one sentence, and nothing lost."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import scripts.publish
from scripts.table.publish import PUBLISHED, cells_behind, publish, results_to_read

HEAD = "table,source,label,rank,method,r,params,won,seed,column,value,n_items\n"
TRAINING = {
    "python": "3.11", "versions": {}, "git": "a" * 40, "code": {"mos": "1"}, "hardware": {}, "started": "x",
    "finished": "y", "metrics": {"eval_loss": 0.5},
}  # fmt: skip
COMMITTED = sorted(PUBLISHED.rglob("table?.csv"))


def results(
    folder: Path,
    seeds: tuple[int, ...] = (0,),
    name: str = "table1",
    methods: tuple[str, ...] = ("lora_r2",),
    score: float = 12.5,
    items: int = 16,
    **training: Any,
) -> Path:
    """A table whose methods are trained on CoT and tested on GSM8K, with a cell for each seed."""
    lines = [
        f"{name},measured,x,2,{method},2,9,True,{seed},{column},{value:.6f},{items}\n"
        for method in methods
        for seed in (*seeds, "mean")
        for column, value in (("gsm8k", score), ("avg", score), ("validation_loss", 0.5))
    ]
    (folder / "cells" / "tiny").mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.csv").write_text(HEAD + "".join(lines), encoding="utf-8")
    (folder / f"{name}.md").write_text("# Table 1\n", encoding="utf-8")
    cells = {f"{method}-r2-cot-seed{seed}-0a": (method, seed) for method in methods for seed in seeds}
    (folder / f"{name}-times.json").write_text(json.dumps({"cells": {run: {} for run in cells}}), encoding="utf-8")
    for run, (method, seed) in cells.items():
        write_cell(folder, method, seed, run=run, score=score, items=items, training=TRAINING | training)
    return folder


def write_cell(folder: Path, method: str, seed: int, score: float, items: int, **more: Any) -> None:
    evaluation = {"gsm8k": {"scores": {"gsm8k": score}, "items": items}}
    cell = {"method": method, "dataset": "cot", "seed": seed, "evaluation": evaluation, **more}
    (folder / "cells" / "tiny" / f"{method}-cot-seed{seed}.json").write_text(json.dumps(cell), encoding="utf-8")


def content(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_tables_and_cells_are_copied_and_other_tables_stay(tmp_path: Path) -> None:
    target = results(tmp_path / "published", name="table3", methods=("mos_r4",))
    kept = content(target)
    results(tmp_path / "own")
    (tmp_path / "own" / "rates.yaml").write_text("lora_r2: {}\n", encoding="utf-8")
    assert publish(tmp_path / "own", target) == ["table1"]
    assert content(target) == kept | content(tmp_path / "own")


@pytest.mark.parametrize("table", COMMITTED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_committed_table_agrees_with_its_committed_cells(table: Path) -> None:
    named = json.loads(table.with_name(f"{table.stem}-times.json").read_text(encoding="utf-8"))["cells"]
    assert {cell["run"] for cell in cells_behind(table.parent, table.stem).values()} == set(named)


def test_a_number_that_its_cell_does_not_hold_is_refused(tmp_path: Path) -> None:
    """A later table with all items has replaced the cells of one that was made with LIMIT=16."""
    own, lost = results(tmp_path / "own", (0, 1)), r"table1\.csv, lora_r2, seed 1, gsm8k, is 12\.500000 over 16 items"
    run = "lora_r2-r2-cot-seed1-0a"
    write_cell(own, "lora_r2", 1, run=run, score=8.25, items=164, training=TRAINING)
    with pytest.raises(ValueError, match=f"{lost}, but its cell holds 8\\.250000 over 164; make the table again"):
        publish(own, tmp_path / "published")
    write_cell(own, "lora_r2", 1, run=run, score=12.5, items=164, training=TRAINING)
    with pytest.raises(ValueError, match=f"{lost}, but its cell holds 12\\.500000 over 164; make the table again"):
        publish(own, tmp_path / "published")
    write_cell(own, "lora_r2", 1, run="lora_r2-r2-cot-seed1-0b", score=12.5, items=16, training=TRAINING)
    with pytest.raises(ValueError, match=f"{lost}, but no cell of its runs holds it; make the table again"):
        publish(own, tmp_path / "published")
    assert not (tmp_path / "published").exists()


@pytest.mark.parametrize(("loss", "agrees"), [(0.5000009, True), (0.500002, False)])
def test_a_validation_loss_is_that_of_its_cells_to_the_digits_of_the_table(
    tmp_path: Path, loss: float, agrees: bool
) -> None:
    own = results(tmp_path / "own", metrics={"eval_loss": loss})
    with nullcontext() if agrees else pytest.raises(ValueError, match=r"seed 0, validation_loss, is 0\.500000"):
        publish(own, tmp_path / "published")


def test_a_table_that_does_not_tell_its_runs_is_refused(tmp_path: Path) -> None:
    (results(tmp_path / "own") / "table1-times.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"table1-times\.json, which names the runs of table1.*make the table"):
        publish(tmp_path / "own", tmp_path / "published")


def test_a_cell_that_no_table_reports_does_not_count_and_is_not_copied(tmp_path: Path) -> None:
    own = results(tmp_path / "own")
    expected, trial = content(own), TRAINING | {"git": "b" * 40 + "+changes"}
    write_cell(own, "lora_r2", 9, run="lora_r2-r2-cot-seed9-0a", score=0, items=16, training=trial)
    publish(own, tmp_path / "published")
    assert content(tmp_path / "published") == expected


def test_the_cells_of_a_published_table_that_stays_are_not_replaced(tmp_path: Path) -> None:
    target = results(tmp_path / "published", name="table2")
    before = content(target)
    with pytest.raises(ValueError, match=r"table2\.csv, lora_r2, seed 0, gsm8k, is 12\.5.*make the table again"):
        publish(results(tmp_path / "own", score=25.0), target)
    assert content(target) == before


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


@pytest.mark.parametrize(
    ("more", "lost"),
    [({"seeds": (0, 1, 2)}, "the seeds 1, 2"), ({"methods": ("lora_r2", "mos_r4", "vera")}, "the rows mos_r4, vera")],
)
def test_fewer_seeds_or_rows_do_not_replace_more(tmp_path: Path, more: Any, lost: str) -> None:
    target = tmp_path / "published"
    publish(results(tmp_path / "more", **more), target)
    before = content(target)
    with pytest.raises(ValueError, match=f"has {lost} too; run them, or remove that file first"):
        publish(results(tmp_path / "one"), target)
    assert content(target) == before


def test_what_belongs_to_an_earlier_table_does_not_stay_beside_a_new_one(tmp_path: Path) -> None:
    target = tmp_path / "published"
    old = results(tmp_path / "old")
    for name in ("claims.md", "table1.png", "rates.yaml"):
        (old / name).write_text("old", encoding="utf-8")
    publish(old, target)
    (old / "claims.md").unlink()
    publish(old, target)
    assert (target / "claims.md").is_file()  # the numbers are the same
    new = results(tmp_path / "new", score=25.0)
    publish(new, target)
    assert content(target) == content(new) | {Path("rates.yaml"): b"old"}


def test_the_command_says_that_the_claims_were_removed_and_how_to_make_them(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(scripts.publish, "PUBLISHED", tmp_path / "published")
    results(tmp_path / "own" / "micro", score=25.0)
    claims = results(tmp_path / "published" / "micro") / "claims.md"
    claims.write_text("old", encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["publish", "profile=micro", f"results_dir={tmp_path / 'own'}"])
    scripts.publish.main()
    assert f"{claims} was about earlier numbers and is removed" in (said := capsys.readouterr().out)
    assert f"`python -m scripts.claims profile=micro results_dir={tmp_path / 'own'}`" in said
    scripts.publish.main()
    assert "claims" not in capsys.readouterr().out


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
