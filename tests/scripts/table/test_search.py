"""Searches: every combination, impossible ones with their reason, ranked by validation loss; rates for tables."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from data_prep import sources
from data_prep.download import raw_folder
from scripts import search as command
from scripts.cell.training import train
from scripts.command import sentence
from scripts.config import ROOT, compose, refuse_lost
from scripts.table import grid, local, notes, rates, search
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
    rates.keep(rates.rates_file(cfg, own), search.tried_rates(cfg, ranked))
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
    rates.keep(path, {"vera_r256": {"seeds": [7], "datasets": ["cot"], "tried": {0.1: 1.0}}})
    after = path.read_text(encoding="utf-8")
    assert after.startswith(before)
    assert "vera_r256" in after


def test_a_search_of_other_settings_gives_no_rates() -> None:
    ranked = search.pd.DataFrame([{"method": "mos", "method.r": 8, "mean": 1.0}])
    assert search.tried_rates(compose(["search=mos"]), ranked) == {}


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


def kept(path: Path, tried: dict[float, float], seeds: Sequence[int] = (7,), sets: Sequence[str] = ("cot",)) -> Any:
    """What the file says of a method after another search of it."""
    rates.keep(path, {"mos": {"seeds": list(seeds), "datasets": list(sets), "tried": tried}})
    return OmegaConf.to_container(OmegaConf.load(path))["mos"] if path.is_file() else None  # type: ignore[index,call-overload]


def test_other_rates_on_the_same_seeds_and_sets_are_added(tmp_path: Path) -> None:
    path = tmp_path / "rates.yaml"
    kept(path, {0.001: 1.5, 2e-05: 1.0}, [7, 8], ["cot", "flan_v2"])
    worse = kept(path, {0.1: 3.0}, [8, 7], ["flan_v2", "cot"])
    assert (worse["learning_rate"], worse["tried"]) == (2e-05, {2e-05: 1.0, 0.001: 1.5, 0.1: 3.0})
    assert rates.at_the_edge(worse)
    again = kept(path, {2e-05: 2.0}, [7, 8], ["cot", "flan_v2"])  # a rate tried again: the new value
    assert (again["learning_rate"], again["tried"][2e-05]) == (0.001, 2.0)
    assert not rates.at_the_edge(again)


@pytest.mark.parametrize(("seeds", "sets"), [([9], ["cot"]), ([7], ["flan_v2"]), ([7], ["cot", "flan_v2"])])
def test_a_search_on_other_seeds_or_sets_replaces(tmp_path: Path, seeds: list[int], sets: list[str]) -> None:
    path = tmp_path / "rates.yaml"
    kept(path, {0.001: 1.0})
    after = kept(path, {0.1: 3.0}, seeds, sets)
    assert after == {"learning_rate": 0.1, "seeds": seeds, "datasets": sets, "tried": {0.1: 3.0}}


def test_rates_that_diverge_are_kept_as_infinite_and_never_chosen(tmp_path: Path) -> None:
    path = tmp_path / "rates.yaml"
    assert kept(path, {0.1: inf}) is None
    kept(path, {0.001: 2.0, 0.01: 1.0})
    after = kept(path, {0.1: inf})
    assert (after["learning_rate"], after["tried"]) == (0.01, {0.001: 2.0, 0.01: 1.0, 0.1: inf})
    assert "0.1: .inf" in path.read_text(encoding="utf-8")
    assert not rates.at_the_edge(after)
    assert kept(path, {0.1: inf}, seeds=[9]) == after  # no rate would replace one


Result = Callable[[DictConfig], float | str]  # a run's validation loss, or the sentence that it ended with


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """`run(result, *overrides)`: the command, its runs trained by `result`; what it exits with (None: 0)."""
    usual = ["profile=smol", "methods=[lora_r2,mos_r8]", "search.datasets=[cot]", GRID]
    monkeypatch.chdir(tmp_path)  # and no places in the overrides: configs are composed once for all tests
    search.runs.load.cache_clear()

    def call(result: Result, *overrides: str) -> Any:
        def launch(common: list[str], jobs: list[list[str]], *_: object) -> list[str]:
            failed = []
            for job in jobs:
                cfg = compose([*common, *job])
                ended = result(cfg)
                if isinstance(ended, str):
                    failed.append(f"{' '.join(job)}: {ended}")
                else:
                    path = search.runs.run_dir(cfg)
                    path.mkdir(parents=True)
                    (path / "run.json").write_text(json.dumps({"metrics": {"eval_loss": ended}}))
                    (path / "config.yaml").write_text("{}")
            return failed

        monkeypatch.setattr(search, "launch", launch)
        monkeypatch.setattr(search, "trainable_parameters", lambda cfg: 1)  # the shapes are found in other tests
        monkeypatch.setattr(sources, "downloaded", download)
        monkeypatch.setattr(sys, "argv", ["search", *usual, *overrides])
        try:
            command.main()
        except SystemExit as ended:
            return ended.code
        return None

    return call


def download(source: DictConfig, cache_dir: Path) -> Path:
    """The training set, as if from the network."""
    folder = raw_folder(source, cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for [name] in source.files.values():
        (folder / name).write_text("{}")
    return folder


def by_rate(cfg: DictConfig) -> float:
    """0.001 is the best of `GRID`."""
    return abs(float(cfg.trainer.learning_rate) - 0.001)


DIVERGED = "The loss is nan at step 3; lower trainer.learning_rate (now 0.003) and start again."


def written(tmp_path: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(tmp_path / "results/smol/rates.yaml"))


def test_data_that_is_downloaded_first_is_part_of_the_runs_keys(
    run: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(by_rate) is None
    assert {own["learning_rate"] for own in written(tmp_path).values()} == {0.001}
    capsys.readouterr()
    assert run(by_rate, "dry=true") is None  # all are found again
    assert capsys.readouterr().out.strip() == "0 runs to train, of 6"


def test_data_that_cannot_be_had_ends_the_search_before_it_trains(run: Callable[..., Any], tmp_path: Path) -> None:
    one = ["methods=[lora_r2]", "search.grid.trainer.learning_rate=[0.001]"]
    said = run(lambda cfg: pytest.fail("it trains"), f"data={tmp_path}", *one)
    assert said.startswith(f"error: {tmp_path}/train/cot is not a folder: data={tmp_path} must hold train/cot")


def test_an_unknown_launcher_ends_it_before_data_is_fetched() -> None:
    with pytest.raises(ValueError, match="Unknown launcher 'slurn'"):
        search.prepare(compose(["launcher=slurn"]), [])


def test_a_rate_at_which_training_diverges_is_ranked_last_and_kept(
    run: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def result(cfg: DictConfig) -> float | str:
        if cfg.trainer.learning_rate < 0.003 or cfg.seed == 1001:
            return by_rate(cfg)
        return nan if cfg.method.name == "mos_r8" else DIVERGED  # the last step can be the one that diverges

    assert run(result, "search.seeds=[1000,1001]") is None
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1:3] for line in lines if " inf " in line] == [["lora_r2", "0.003"], ["mos_r8", "0.003"]]
    assert [own["learning_rate"] for own in written(tmp_path).values()] == [0.001, 0.001]
    assert written(tmp_path)["mos_r8"]["tried"] == {0.0003: pytest.approx(0.0007), 0.001: 0.0, 0.003: inf}
    assert not any(rates.at_the_edge(own) for own in written(tmp_path).values())


def test_a_method_that_always_diverges_has_no_rate(
    run: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(lambda cfg: DIVERGED if cfg.method.name == "mos_r8" else by_rate(cfg)) is None
    assert list(written(tmp_path)) == ["lora_r2"]
    assert "No rate of mos_r8 is kept: training diverged at all of these." in capsys.readouterr().err


@pytest.mark.parametrize("broken", [False, True])
def test_another_failure_ends_with_1_after_the_other_methods_are_kept(
    run: Callable[..., Any], tmp_path: Path, broken: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The jobs of lora_r2 come first; a killed worker takes what is left with it."""

    def result(cfg: DictConfig) -> float | str:
        if cfg.method.name == "mos_r8" and cfg.trainer.learning_rate == 0.003:
            if broken:
                raise BrokenExecutor
            return "No space left on device"
        return by_rate(cfg)

    said = str(run(result))
    assert said.startswith("error: 1 of 6 runs failed:\n")
    assert ("A worker was killed" if broken else "No space left on device") in said
    assert list(written(tmp_path)) == ["lora_r2"]
    assert "mos_r8" not in capsys.readouterr().out
    assert run(by_rate) is None
    assert list(written(tmp_path)) == ["lora_r2", "mos_r8"]


def test_where_every_method_lacks_a_run_nothing_is_ranked(run: Callable[..., Any], tmp_path: Path) -> None:
    assert str(run(lambda cfg: "No space left on device")).startswith("error: 6 of 6 runs failed:\n")
    assert not (tmp_path / "results").exists()


def test_divergence_is_known_by_the_trainer_s_sentence(tiny: Callable[..., DictConfig]) -> None:
    with pytest.raises(FloatingPointError) as raised:
        train(tiny("trainer.learning_rate=1e30"))
    assert search.DIVERGED.fullmatch(f"method=lora seed=1: {sentence(raised.value)}")
    assert local._line(["method=lora", "seed=1"], local.train_one, "x") == "method=lora seed=1: x"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trainer.learning_rate=0.5", "use search.grid.trainer.learning_rate=[0.5]."),
        ("rates=own", "a search finds the rates; use search.grid.trainer.learning_rate for those to try."),
        ("seeds=[1,2]", "use search.seeds=[1,2]."),
    ],
)
def test_what_a_search_would_replace_is_refused(
    run: Callable[..., Any], tmp_path: Path, override: str, sentence: str
) -> None:
    said = run(lambda cfg: pytest.fail("it trains"), override)
    assert said.startswith(f"error: {override} would have no effect: ")
    assert said.endswith(sentence)
    assert not list(tmp_path.iterdir())


def test_a_search_of_other_settings_refuses_its_own() -> None:
    meant = search.replaced(compose(["search=mos"]))
    refuse_lost(["trainer.learning_rate=0.5"], meant)
    with pytest.raises(ValueError, match=r"method.r=16 would have no effect: .*; use search.grid.method.r=\[16\]\."):
        refuse_lost(["method.r=16"], meant)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trainer.learning_rate=0.1", "search.grid.trainer.learning_rate=0.1 is refused: it takes a list of values"),
        ("trainer.learning_rate=null", "search.grid.trainer.learning_rate=None is refused: it takes a list"),
        ("trainer.learning_rate=[]", "search.grid.trainer.learning_rate=[] is refused: it takes a list"),
        ("trainer=3", "search.grid.trainer=3 is refused: name a setting of it"),
        ("trainer=null", "search.grid of 'lr' names no setting"),
    ],
)
def test_a_grid_that_is_no_list_is_refused(override: str, sentence: str) -> None:
    overrides = ["profile=smol", "search=lr", f"search.grid.{override}"]
    with pytest.raises(ValueError) as refused:
        search.combinations(compose(overrides), overrides)
    assert str(refused.value).startswith(sentence)


def test_a_section_of_the_grid_that_is_null_is_left_out() -> None:
    overrides = ["profile=smol", "search=lr", "search.grid.trainer=null", "+search.grid.method.r=[4,8]"]
    assert [c.settings for c in search.combinations(compose(overrides), overrides)] == [
        {"method.r": 4},
        {"method.r": 8},
    ]
