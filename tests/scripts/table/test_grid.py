"""Every cell of the paper's tables, and how a request narrows them down."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from scripts.config import choices, compose
from scripts.table import grid

TABLES = ["table1", "table2", "table3"]


def cells(*overrides: str) -> list[grid.Cell]:
    return grid.cells(compose(overrides), overrides)


@pytest.mark.parametrize(
    ("table", "methods", "vanilla", "datasets"), [("table1", 4, 0, 4), ("table2", 18, 2, 4), ("table3", 5, 2, 3)]
)
def test_all_cells_of_a_table(table: str, methods: int, vanilla: int, datasets: int) -> None:
    found = cells("profile=smol", f"table={table}", "seeds=[0,1]")
    assert len({cell.path for cell in found}) == len(found) == methods * datasets * 2 + vanilla
    assert len({cell.method for cell in found}) == methods + vanilla


def test_candidates_limit_each_row() -> None:
    found = cells("profile=smol", "table=table2", "candidates=1")
    assert {cell.method for cell in found} >= {"mos_r4", "mos_r16", "prolora_r4", "lora_r64"}
    assert not {cell.method for cell in found} & {"mos_r8", "mos_r32", "prolora_r8"}


def test_methods_select_rows_and_their_candidates() -> None:
    request = ["profile=smol", "table=table2", "methods=[mos_r8,lora_r2]", "candidates=1"]
    rows = grid.rows(compose(request))
    assert {row.label: row.methods for row in rows if row.methods} == {"LoRA": ("lora_r2",), "MoS": ("mos_r8",)}
    assert {cell.method for cell in cells(*request)} == {"mos_r8", "lora_r2"}


def test_a_cell_is_tested_on_what_its_table_shows_of_its_training_set() -> None:
    tested = {cell.dataset: cell.benchmarks for cell in cells("table=table3", "methods=[lora_r2,vanilla_chat]")}
    assert tested == {None: ("mmlu", "bbh", "gsm8k"), "super_ni": ("mmlu",), "flan_v2": ("bbh",), "cot": ("gsm8k",)}


@pytest.mark.parametrize(
    ("table", "datasets", "columns"),
    [
        ("table2", ["code_alpaca"], ["humaneval"]),
        ("table2", ["cot", "super_ni"], ["mmlu", "gsm8k", "tydiqa_f1", "tydiqa_em"]),
        ("table3", ["cot"], ["gsm8k"]),
    ],
)
def test_datasets_narrow_a_table_to_their_columns(table: str, datasets: list[str], columns: list[str]) -> None:
    common = ["profile=smol", f"table={table}", "methods=[lora_r2,vanilla_chat]"]
    narrowed = [*common, f"datasets=[{','.join(datasets)}]"]
    cfg = compose(narrowed)
    assert (list(cfg.table.columns), list(cfg.table.datasets)) == (columns, datasets)
    assert list(cfg.search.datasets) == datasets
    own = {cell.dataset: cell for cell in cells(*narrowed) if cell.dataset}
    whole = {cell.dataset: cell for cell in cells(*common) if cell.dataset}
    assert own == {name: whole[name] for name in datasets}


@pytest.mark.parametrize(("table", "name"), [("table2", "cod_alpaca"), ("table3", "code_alpaca"), ("table2", "''")])
def test_a_training_set_that_the_table_lacks_is_refused(table: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"datasets: Unknown training set of {table} '{name.strip(chr(39))}'"):
        compose([f"table={table}", f"datasets=[{name}]"])


def test_a_cell_s_run_is_the_one_that_training_makes(tmp_path: Path) -> None:
    """What `scripts.train` composes from the cell's own overrides must live where the grid looks for it."""
    from scripts.cell import runs

    common = ["profile=smol", "table=table2", "methods=[mos_r16]", "seeds=[3]", f"runs_dir={tmp_path}"]
    for cell in cells(*common):
        assert runs.run_dir(compose([*common, *grid.job(cell)])) == cell.path


def test_tables_share_the_runs_of_a_common_row() -> None:
    first, second = (cells(f"table={table}", "methods=[lora_r2]") for table in TABLES[:2])
    assert [cell.path for cell in first] == [cell.path for cell in second]


def test_an_override_reaches_the_cells() -> None:
    plain, changed = (cells("table=table2", "methods=[mos_r16]", *extra) for extra in ([], ["method.private_rank=2"]))
    assert not {cell.path for cell in plain} & {cell.path for cell in changed}


def test_finished_cells_are_not_missing(tmp_path: Path) -> None:
    found = cells("table=table1", "methods=[lora_r2]", f"runs_dir={tmp_path}")
    assert grid.untrained(found) == found
    found[0].path.mkdir(parents=True)
    (found[0].path / "run.json").write_text("{}")
    assert grid.untrained(found) == found[1:]


def test_an_unknown_method_names_the_nearest_and_the_known_ones() -> None:
    with pytest.raises(
        ValueError, match=re.escape("No table has it: Unknown method 'lora_r3'. Did you mean 'lora_r")
    ) as error:
        grid.check_methods(["lora_r2", "lora_r3"])
    assert "mos_minus_pd_r32" in str(error.value)


@pytest.mark.parametrize("table", TABLES)
def test_every_method_of_a_table_is_a_config(table: str) -> None:
    rows = OmegaConf.load(grid.CONFIGS / "table" / f"{table}.yaml").rows
    named = {method for row in rows for method in row.methods} | {row.against for row in rows if "against" in row}
    assert named <= set(choices("method"))
