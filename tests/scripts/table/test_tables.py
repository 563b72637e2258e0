"""From runs on disk to a table on disk, on fake runs: everything real but training and models."""

import json
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from eval.predictions import Store
from scripts.cell import runs
from scripts.config import compose
from scripts.table import collect, grid
from scripts.table import produce as tables

COLUMNS = {"mmlu": ["mmlu"], "bbh": ["bbh"], "gsm8k": ["gsm8k"]}
RIGHT = {"lora_r2": 12, "mos_r4": 6, "mos_r8": 30}  # of 40 items
LOSS = {"lora_r2": 1.5, "mos_r4": 1.25, "mos_r8": 1.125}  # nats per labelled token


def train(cell: grid.Cell, cfg: DictConfig) -> None:
    cell.path.mkdir(parents=True)
    OmegaConf.save(OmegaConf.merge(cfg, {"seed": cell.seed}), cell.path / "config.yaml", resolve=True)
    info = {
        "seed": cell.seed,
        "trainable_parameters": 4997,
        "seconds": 7.0,
        "data": {"train": 99, "key": "ab12"},
        "metrics": {"loss": 1},
    }
    (cell.path / "run.json").write_text(json.dumps(info))
    losses = [{"loss": (LOSS[cell.method] + 0.01 * cell.seed) * n, "tokens": n} for n in range(1, 31)]
    (cell.path / runs.HELD_OUT_LOSSES).write_text("".join(json.dumps(line) + "\n" for line in losses))
    (cell.path / "lora").mkdir()
    (cell.path / "lora" / "adapter_config.json").write_text(json.dumps({"r": int(cell.method.rpartition("r")[2])}))


def evaluate(cell: grid.Cell, order: int = 1) -> list[Path]:
    folders = []
    for name in cell.benchmarks:
        folder = cell.path / "eval" / f"{name}-key"
        scores = [100.0 * (i < RIGHT[cell.method] + cell.seed) for i in range(40)]
        with Store(folder) as store:
            for i, score in [*enumerate(scores)][::order]:
                store.add(
                    {
                        "id": f"{name}/{i}",
                        "task": f"task {i % 2}",
                        "scores": dict.fromkeys(COLUMNS[name], score),
                    }
                )
        mean = sum(scores) / len(scores)
        metrics = {"scores": dict.fromkeys(COLUMNS[name], mean), "items": 40, "average": "items", "label": name.upper()}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        (folder / "timing.json").write_text(json.dumps({"seconds": 2.5, "items": 40}))
        folders.append(folder)
    return folders


class Case:
    """Table 3 with three methods and two seeds, all of it on disk."""

    def __init__(self, folder: Path, *extra: str) -> None:
        self.overrides = [
            "profile=smol", "table=table3", "methods=[lora_r2,mos_r4,mos_r8]", "seeds=[0,1]", f"runs_dir={folder}/runs",
            f"results_dir={folder}/results", f"data={folder}/data", "limit=40", *extra,
        ]  # fmt: skip
        self.cfg = compose(self.overrides)
        self.cells = grid.cells(self.cfg, self.overrides)
        self.results = folder / "results" / "smol"

    def run(self, cells: Sequence[grid.Cell] | None = None, order: int = 1) -> dict[Path, list[Path]]:
        """Train and evaluate the cells (None: all of them); order -1: the items come out the other way round."""
        chosen = self.cells if cells is None else cells
        for cell in chosen:
            train(cell, self.cfg)
        return {cell.path: evaluate(cell, order) for cell in chosen}

    def files(self) -> list[bytes]:
        return [(self.results / f"table3.{kind}").read_bytes() for kind in ("md", "csv", "png")]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    case = Case(tmp_path_factory.mktemp("table"))
    tables.write(case.cfg, case.overrides, case.cells, case.run())
    return case


def test_table_shows_measured_and_paper_s_numbers(case: Case) -> None:
    text = (case.results / "table3.md").read_text()
    assert (
        "| LoRA | 2 | measured | 4,997 | 31.25 ± 1.77 | 31.25 ± 1.77 | 31.25 ± 1.77 | 31.25 ± 1.77 | 1.5050 ± 0.0071 |"
        in text
    )
    assert "| MoS | 8 (of 4/8) | measured | 4,997 | 76.25 ± 1.77 ▲ |" in text
    assert "| MoS | 4/8 | paper | - | 53.51 | 43.65 | 40.79 | 45.98 | - |" in text
    assert "1.1300 ± 0.0071 ▲ |" in text  # lower is better
    assert "| PRoLoRA | 4/8 | measured | - | not run |  |  |  |  |" in text
    assert "Seeds: 0, 1 (mean ± standard deviation" in text
    assert "Items: MMLU 40, BBH 40, GSM8K 40." in text
    assert f"trainer.max_steps {case.cfg.trainer.max_steps} (10000)" in text
    assert "limit 40 (all)" in text


def test_every_cell_has_its_provenance_without_paths(case: Case) -> None:
    files = sorted(path.name for path in (case.results / "cells" / "smollm2_135m").iterdir())
    assert len(files) == 3 * 3 * 2
    assert files[0] == "lora_r2-cot-seed0.json"
    text = (case.results / "cells" / "smollm2_135m" / files[0]).read_text()
    found = json.loads(text)
    assert found["evaluation"]["gsm8k"]["scores"] == {"gsm8k": 30.0}
    assert found["seconds"] == {"training": 7.0, "gsm8k": 2.5}
    assert found["config"]["trainer"]["max_steps"] == case.cfg.trainer.max_steps
    assert str(case.results.parents[1]) not in text


def test_times_stand_apart_from_the_table(case: Case) -> None:
    times = json.loads((case.results / "table3-times.json").read_text())
    assert (times["training_seconds"], times["evaluation_seconds"]) == (18 * 7.0, 18 * 2.5)
    assert "second" not in (case.results / "table3.csv").read_text()


def test_rendering_again_changes_no_byte(case: Case) -> None:
    files = [case.results / f"table3.{kind}" for kind in ("md", "csv", "png")]
    before = [file.read_bytes() for file in files]
    folders = {cell.path: [cell.path / "eval" / f"{name}-key" for name in cell.benchmarks] for cell in case.cells}
    tables.write(case.cfg, case.overrides, case.cells, folders)
    assert [file.read_bytes() for file in files] == before


def test_what_cannot_matter_changes_no_byte(case: Case, tmp_path: Path) -> None:
    """Other names of runs, items and cells that come out in another order, two workers: the same table."""
    other = Case(tmp_path, "workers=2")
    folders = other.run(order=-1)
    assert not {cell.path.name for cell in other.cells} & {cell.path.name for cell in case.cells}
    tables.write(other.cfg, other.overrides, other.cells[::-1], folders)
    assert other.files() == case.files()


def test_the_order_of_the_rows_is_the_only_thing_that_it_changes(case: Case) -> None:
    folders = {cell.path: [cell.path / "eval" / f"{name}-key" for name in cell.benchmarks] for cell in case.cells}
    found = collect.results(case.cells, folders)
    turned = OmegaConf.merge(case.cfg, {"table": {"rows": list(case.cfg.table.rows)[::-1]}})
    assert isinstance(turned, DictConfig)
    texts = []
    for cfg in (case.cfg, turned):
        files = tables.drawn(cfg, collect.entries(found, cfg), collect.per_task(found), {}, ["A note."])
        texts.append([files[kind].decode().splitlines() for kind in (".md", ".csv")])
    for first, second in zip(*texts, strict=True):
        assert first != second
        assert sorted(first) == sorted(second)


def launched(monkeypatch: pytest.MonkeyPatch, *outcomes: Any) -> list[Sequence[Sequence[str]]]:
    """Replace the launcher: each call has the next outcome, a list of failures or an error; returns their jobs."""
    calls: list[Sequence[Sequence[str]]] = []

    def launch(
        common: Sequence[str], jobs: Sequence[Sequence[str]], launcher: str | None, workers: int, evaluating: bool
    ) -> list[str]:
        calls.append(jobs)
        outcome = outcomes[len(calls) - 1]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(tables, "launch", launch)
    return calls


def test_only_missing_cells_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path)
    train(case.cells[0], case.cfg)
    calls = launched(monkeypatch, [])
    tables.train_missing(case.cfg, case.overrides, case.cells)
    assert calls == [[grid.job(cell) for cell in case.cells[1:]]]


def test_a_killed_worker_s_cells_are_tried_once_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path)
    calls = launched(monkeypatch, BrokenExecutor("killed"), [])
    tables.train_missing(case.cfg, case.overrides, case.cells)
    assert len(calls) == 2


def test_after_a_second_kill_each_cell_is_on_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path)
    killed = BrokenExecutor("The worker was killed.")
    calls = launched(monkeypatch, killed, killed, [], killed, *[[]] * 16)
    failed = tables.train_missing(case.cfg, case.overrides, case.cells)
    assert failed == [f"{' '.join(grid.job(case.cells[1]))}: The worker was killed."]
    assert [len(jobs) for jobs in calls] == [18, 18, *[1] * 18]


def test_one_cell_is_tried_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path)
    calls = launched(monkeypatch, *[BrokenExecutor("The worker was killed.")] * 2)
    (line,) = tables.train_missing(case.cfg, case.overrides, case.cells[:1])
    assert line.endswith("seed=0: The worker was killed.")
    assert len(calls) == 2


def test_failed_cells_are_listed_under_the_table_and_leave_a_dash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(tmp_path, "seeds=[0]", "methods=[lora_r2,mos_r8]")
    launched(monkeypatch, ["method=mos_r8 dataset=cot seed=0: it is so."])
    failed = tables.train_missing(case.cfg, case.overrides, case.cells)
    assert failed == ["method=mos_r8 dataset=cot seed=0: it is so."]
    finished = [cell for cell in case.cells if (cell.method, cell.dataset) != ("mos_r8", "cot")]
    folders = case.run(finished)
    tables.write(case.cfg, case.overrides, finished, folders, failed)
    text = (case.results / "table3.md").read_text(encoding="utf-8")
    assert "| MoS | 8 (of 4/8) | measured | 4,997 | 75.00 ▲ | 75.00 ▲ | - | - |" in text
    assert "`mos_r8` -." in text
    assert "- Failed: method=mos_r8 dataset=cot seed=0: it is so." in text


def test_a_cell_that_was_trained_and_not_evaluated_is_no_failure_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `evaluation.when=cell` the launcher tells of both; what is trained is evaluated once more at the end."""
    case = Case(tmp_path, "seeds=[0]", "methods=[lora_r2]")
    first, second = case.cells[:2]
    lines = [
        f"{' '.join(grid.job(first))}: trained, but not evaluated: no memory.",
        f"{' '.join(grid.job(second))}: no.",
    ]
    launched(monkeypatch, lines)
    monkeypatch.setattr(runs, "is_finished", lambda path: path == first.path)
    assert tables.train_missing(case.cfg, case.overrides, [first, second]) == lines[1:]


def broken(monkeypatch: pytest.MonkeyPatch, *cells: grid.Cell) -> None:
    """Let the evaluation of these cells fail, alone or with others."""

    def evaluate_missing(cfg: Any, chosen: Sequence[grid.Cell]) -> dict[Path, list[Path]]:
        if set(cells) & set(chosen):
            raise ValueError("the adapter is damaged.")
        return {cell.path: [] for cell in chosen}

    def alone(common: Sequence[str], jobs: Sequence[Sequence[str]], workers: int) -> list[str]:
        bad = [grid.job(cell) for cell in cells]
        return [f"{' '.join(job)}: the adapter is damaged." for job in jobs if job in bad]

    monkeypatch.setattr(tables, "evaluate_missing", evaluate_missing)
    monkeypatch.setattr(tables.local, "evaluate", alone)


@pytest.mark.parametrize("place", [0, 1, 4])
def test_one_damaged_adapter_does_not_take_the_table_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    case = Case(tmp_path)
    bad = case.cells[place]
    broken(monkeypatch, bad)
    folders, failed = tables.evaluate_finished(case.cfg, case.overrides, case.cells)
    assert failed == [f"{' '.join(grid.job(bad))}: the adapter is damaged."]
    assert list(folders) == [cell.path for cell in case.cells if cell != bad]


@pytest.mark.parametrize("count", [1, 2, 18])
def test_an_error_that_no_cell_is_at_fault_for_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    case = Case(tmp_path)
    broken(monkeypatch, *case.cells)
    with pytest.raises(ValueError, match="the adapter is damaged"):
        tables.evaluate_finished(case.cfg, case.overrides, case.cells[:count])


def test_nothing_is_launched_when_nothing_is_missing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = launched(monkeypatch)
    tables.train_missing(case.cfg, case.overrides, case.cells)
    assert not calls
    assert all(runs.is_finished(cell.path) for cell in case.cells)
