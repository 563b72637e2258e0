"""Searches: every combination, impossible ones with their reason, ranked by validation loss; rates for tables."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.config import ROOT, compose
from scripts.table import grid, notes, rates, search
from scripts.table.experiment import results_folder


def found(shards: str, private: str, *extra: str) -> list[search.Combination]:
    chosen = [f"search.grid.method.shards_per_vector={shards}", f"search.grid.method.private_rank={private}"]
    common = ["profile=smol", "search=mos", "search.datasets=[cot,flan_v2]", "search.grid.method.r=[8]"]
    overrides = [*common, *chosen, *extra]
    return search.combinations(compose(overrides), overrides)


def finish(combination: search.Combination, losses: dict[tuple[str, int], float]) -> None:
    """Its runs, as if they had been trained to these validation losses."""
    for key, path in combination.runs.items():
        path.mkdir(parents=True)
        (path / "run.json").write_text(json.dumps({"metrics": {"eval_loss": losses[key]}}))
        (path / "config.yaml").write_text("{}")


def test_learning_rates_of_appendix_a() -> None:
    cfg = compose(["search=lr"])
    assert list(cfg.search.grid.trainer.learning_rate) == [2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3]
    assert compose([f"method={cfg.search.method}"]).method.r == 8


def test_impossible_combinations_are_skipped_with_their_reason() -> None:
    combinations = found("[4,5]", "[0,4]")
    reasons = {
        (c.settings["method.shards_per_vector"], c.settings["method.private_rank"]): c.skipped for c in combinations
    }
    assert reasons[4, 0] is None
    assert "private_rank=4 must be in [0, equivalent_rank=2]" in (reasons[4, 4] or "")
    assert "shards_per_vector=5 does not divide" in (reasons[5, 0] or "")


def test_ranking_is_by_mean_validation_loss_over_sets_and_seeds(tmp_path: Path) -> None:
    losses = {("cot", 0): 3.0, ("cot", 1): 5.0, ("flan_v2", 0): 1.0, ("flan_v2", 1): 1.0}
    combinations = found("[4]", "[0,1]", "search.seeds=[0,1]", f"runs_dir={tmp_path}")
    for shift, combination in zip([0.5, 0.0], combinations, strict=True):
        finish(combination, {key: loss + shift for key, loss in losses.items()})
    ranked = search.ranking(combinations)
    assert list(ranked["method.private_rank"]) == [1, 0]
    assert list(ranked["mean"]) == [2.5, 3.0]
    assert list(ranked["cot"]) == [4.0, 4.5]


METHODS = ["lora_r2", "mos_r8"]
GRID = "search.grid.trainer.learning_rate=[0.001,0.0003,0.003]"
LOSSES = {"lora_r2": [2.0, 2.5, 1.5], "mos_r8": [1.0, 2.0, 2.0]}  # in the order of the grid


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("search")
    return ["profile=smol", "table=table2", f"results_dir={folder}/results", f"runs_dir={folder}/runs"]


@pytest.fixture(scope="module")
def searched(overrides: list[str]) -> list[str]:
    """The overrides of a profile whose rates have been searched, for three methods."""
    own = [*overrides, "search=lr", f"methods=[{','.join(METHODS)}]", "search.datasets=[cot]", GRID]
    cfg = compose(own)
    combinations = search.combinations(cfg, own)
    for method in METHODS:
        mine = [combination for combination in combinations if combination.method == method]
        for loss, combination in zip(LOSSES[method], mine, strict=True):
            finish(combination, {("cot", 1000): loss})
    ranked = search.ranking(combinations)
    assert list(ranked.method) == [name for name in METHODS for _ in range(3)]
    rates.keep(rates.rates_file(cfg, own), search.best_rates(cfg, ranked))
    return overrides


def table(overrides: list[str], *extra: str) -> tuple[list[grid.Cell], list[str]]:
    own = [*overrides, "rates=own", f"methods=[{','.join(METHODS)}]", *extra]
    cfg = compose(own)
    cells = grid.cells(cfg, own)
    trained = [Trained(cell) for cell in cells]
    return cells, notes.learning_rates(cfg, own, trained)  # type: ignore[arg-type]


class Trained:
    def __init__(self, cell: grid.Cell) -> None:
        self.cell = cell


def test_a_table_takes_each_method_s_own_rate(searched: list[str]) -> None:
    cells, [note] = table(searched)
    assert {cell.method: cell.rate for cell in cells} == {"lora_r2": 0.003, "mos_r8": 0.001}
    for cell in cells:
        assert f"trainer.learning_rate={cell.rate}" in grid.job(cell)
    same = [*searched, "methods=[lora_r2,mos_r8]"]
    common = grid.cells(compose(same), same)
    shared = {cell.path for cell in cells} & {cell.path for cell in common}
    assert {path.name.partition("-")[0] for path in shared} == {"lora_r2"}  # 0.003 is the profile's own
    assert "seeds that the table does not report (1000): `lora_r2` 0.003, `mos_r8` 0.001." in note
    assert note.endswith("A better one may lie beyond those tried for `lora_r2`.")


def test_the_runs_of_a_job_are_those_of_its_cell(searched: list[str]) -> None:
    cells, _ = table(searched)
    for cell in (cells[0], cells[-1]):
        job = compose([*searched, "rates=own", *grid.job(cell)])
        assert search.runs.run_dir(job) == cell.path


def test_such_a_table_has_a_folder_of_its_own_beside_which_the_rates_are(searched: list[str]) -> None:
    own = [*searched, "rates=own"]
    cfg = compose(own)
    assert results_folder(cfg, own) == results_folder(cfg, searched) / "rates=own"
    assert rates.rates_file(cfg, own) == results_folder(cfg, searched) / "rates.yaml"
    changed = [*own, "trainer.max_steps=9"]
    assert rates.rates_file(compose(changed), changed).parent.name == "trainer.max_steps=9"


def test_without_them_the_common_rate_is_named(overrides: list[str]) -> None:
    cfg = compose(overrides)
    cells = grid.cells(compose([*overrides, "methods=[lora_r2]"]), [*overrides, "methods=[lora_r2]"])
    assert {cell.rate for cell in cells} == {None}
    found = [Trained(cell) for cell in cells]
    [note] = notes.learning_rates(cfg, overrides, found)  # type: ignore[arg-type]
    assert note == f"Learning rate: {cfg.trainer.learning_rate:g} for every method."
    assert any(line.startswith("trainer.learning_rate ") for line in notes.differences(cfg))
    assert not any("learning_rate" in line for line in notes.differences(compose([*overrides, "rates=own"])))


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["methods=[lora_r64]"], "has no rate of lora_r64; make lr-search METHODS=lora_r64 adds it"),
        (["seeds=[3,1000]"], "was chosen on seed 1000, which the table reports"),
        (["trainer.learning_rate=0.1"], "trainer.learning_rate=0.1 would have no effect with rates=own"),
    ],
)
def test_rates_that_cannot_be_used_are_refused(searched: list[str], extra: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        table(searched, *extra)


def test_without_a_search_the_command_is_named(overrides: list[str], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"which is not there; make lr-search METHODS=lora_r2,mos_r8 writes it"):
        table(overrides, f"results_dir={tmp_path}")


def test_another_search_adds_its_methods(searched: list[str], tmp_path: Path) -> None:
    before = rates.rates_file(compose(searched), searched).read_text(encoding="utf-8")
    path = tmp_path / "rates.yaml"
    path.write_text(before, encoding="utf-8")
    rates.keep(path, {"vera_r256": {"learning_rate": 0.1, "seeds": [7], "datasets": ["cot"], "tried": {0.1: 1.0}}})
    after = path.read_text(encoding="utf-8")
    assert after.startswith(before)
    assert "vera_r256" in after


def test_a_search_of_other_settings_gives_no_rates() -> None:
    ranked = search.pd.DataFrame([{"method": "mos", "method.r": 8, "mean": 1.0}])
    assert search.best_rates(compose(["search=mos"]), ranked) == {}


def test_a_dry_search_lists_its_runs_and_trains_none(tmp_path: Path) -> None:
    places = [f"{name}_dir={tmp_path / name}" for name in ("runs", "cache", "results")]
    command = [
        sys.executable,
        "-m",
        "scripts.search",
        "profile=smol",
        "dry=true",
        "search.datasets=[cot]",
        GRID,
        *places,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    *listed, last = done.stdout.splitlines()
    assert last == "3 runs to train, of 3"
    assert all(line.startswith("method=lora_r8 trainer.learning_rate=") for line in listed)
    assert not (tmp_path / "runs").exists()
