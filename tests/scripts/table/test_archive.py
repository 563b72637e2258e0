"""Published runs: restored they count as evaluated, what they were not asked is refused, and they hold no weights."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
from filelock import FileLock

import scripts.archive
import scripts.restore
from data_prep import storage
from scripts.cell import runs, served, training
from scripts.cell.evaluation import evaluate_runs
from scripts.config import compose
from scripts.table import archive


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """The overrides of an evaluation on four of six questions, which any run can be asked."""
    data = tmp_path_factory.mktemp("data")
    rows = [{"question": f"What is {i} and {i}?", "answer": f"#### {2 * i}"} for i in range(6)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    storage.write_text(data / "eval" / "gsm8k" / "test.jsonl", lines)
    return [
        f"data={data}", "engine=hf", "limit=4", "benchmark=[gsm8k]", "benchmark.gsm8k.shots=0",
        "evaluation.max_new_tokens=8",
    ]  # fmt: skip


@pytest.fixture
def asked(tiny, questions):
    return tiny(*questions)


@pytest.fixture(scope="module", params=["lora_r2", "mos", "pure_sharing"])
def evaluated(request, tiny_cell, questions, tmp_path_factory):
    """A run that was trained and asked, once for all tests."""
    rank = {"lora_r2": "2", "mos": "3", "pure_sharing": "null"}[request.param]
    own = [*tiny_cell, f"runs_dir={tmp_path_factory.mktemp('evaluated')}"]
    path = training.train(compose([*own, f"method={request.param}", f"method.r={rank}"]))
    evaluate_runs(compose([*own, *questions]), {path: ["gsm8k"]})
    return path


@pytest.fixture
def run(evaluated, tmp_path):
    """Its copy in the test's own folder."""
    return shutil.copytree(evaluated, tmp_path / "runs" / Path(*evaluated.parts[-3:]))


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_restored_run_is_evaluated_has_its_rank_and_no_weights(run, asked, tmp_path):
    file = archive.pack(run, tmp_path / "published")
    assert archive.unpack(file, tmp_path / "elsewhere")
    restored = tmp_path / "elsewhere" / run.name
    assert not [name for name in files(restored) if name.endswith((".safetensors", ".bin", ".lock"))]
    assert files(restored) >= {"config.yaml", "run.json", "metrics.jsonl"}
    assert served.rank(runs.load(restored)) == served.rank(runs.load(run))
    for name in ("run.json", "validation.jsonl"):
        assert not (run / name).exists() or (restored / name).read_bytes() == (run / name).read_bytes()
    asked.engine._target_ = "nowhere.Engine"  # it must not be needed
    [before], [after] = (evaluate_runs(asked, {path: ["gsm8k"]})[path] for path in (run, restored))
    assert (before.parent.parent, after.parent.parent) == (run, restored) and before.name == after.name
    for name in ("metrics.json", "predictions.jsonl"):
        assert (after / name).read_bytes() == (before / name).read_bytes()


def test_what_it_was_not_asked_is_refused_in_a_sentence(run, asked, tmp_path):
    archive.unpack(archive.pack(run, tmp_path / "published"), tmp_path / "elsewhere")
    restored = tmp_path / "elsewhere" / run.name
    asked.limit = 5
    before = files(restored)
    with pytest.raises(FileNotFoundError, match="is a published run without weights, which has no answers to gsm8k"):
        evaluate_runs(asked, {restored: ["gsm8k"]})
    assert files(restored) == before


def test_the_same_run_gives_the_same_bytes_without_paths_of_this_machine(run, tmp_path):
    one, other = (archive.pack(run, tmp_path / name) for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()
    with tarfile.open(one) as tar:
        config = tar.extractfile("config.yaml").read().decode()
    assert str(tmp_path.parent) not in "".join(
        line for line in config.splitlines() if "_dir" in line or "data:" in line
    )
    assert not any(line.startswith(f"{key}:") for line in config.splitlines() for key in archive.PATHS)


def test_a_run_that_is_there_stays(run, tmp_path):
    file = archive.pack(run, tmp_path / "published")
    before = files(run)
    assert not archive.unpack(file, run.parent)
    assert files(run) == before


def packed(path, name):
    with tarfile.open(path, "w:xz") as tar:
        entry = tarfile.TarInfo(name)
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    return path


@pytest.mark.parametrize("name", ["../outside", "a/../../outside"])
def test_a_file_that_would_write_elsewhere_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="cannot be restored"):
        archive.unpack(packed(tmp_path / "run.tar.xz", name), tmp_path / "runs")
    assert not files(tmp_path / "runs") and not (tmp_path / "outside").exists()


def test_a_damaged_file_is_refused_and_leaves_nothing(tmp_path):
    file = packed(tmp_path / "run.tar.xz", "run.json")
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"run\.tar\.xz cannot be restored"):
        archive.unpack(file, tmp_path / "runs")
    assert not files(tmp_path / "runs")


@pytest.fixture
def unfinished(tmp_path):
    """A packed run, and what an interrupted training of the same cell has left."""
    run, path = tmp_path / "vanilla", tmp_path / "elsewhere" / "vanilla"
    storage.write_text(run / "config.yaml", "method: {name: vanilla_chat, config: null}\n")
    storage.write_text(run / "run.json", "{}")
    for name in (".lock", "config.yaml", "checkpoints/half"):
        storage.write_text(path / name, "unfinished")
    return archive.pack(run, tmp_path / "packed"), path


def test_an_unfinished_run_is_replaced(unfinished):
    file, path = unfinished
    assert archive.unpack(file, path.parent)
    assert files(path) == {"config.yaml", "run.json"} and runs.load(path).cfg.method.name == "vanilla_chat"
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    assert not archive.unpack(file, path.parent) and files(path) == {"config.yaml", "run.json"}


def test_an_unfinished_run_stays_where_it_is_held_or_the_file_is_damaged(unfinished):
    file, path = unfinished
    before = files(path)
    with FileLock(path / ".lock"), pytest.raises(BlockingIOError, match=f"{path} is not finished and in use"):
        archive.unpack(file, path.parent)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(ValueError, match="cannot be restored"):
        archive.unpack(file, path.parent)
    assert files(path) == before and (path / "config.yaml").read_text(encoding="utf-8") == "unfinished"


def test_a_run_that_is_held_does_not_stop_the_others(unfinished, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scripts.restore, "PUBLISHED", tmp_path / "published")
    file, path = unfinished
    folder, target = tmp_path / "published" / "micro" / "runs" / "tiny", tmp_path / "new" / "micro" / "tiny"
    folder.mkdir(parents=True)
    file.rename(folder / file.name)
    (folder / f"z-{file.name}").write_bytes((folder / file.name).read_bytes())
    target.mkdir(parents=True)
    path.rename(held := target / path.name)
    monkeypatch.setattr("sys.argv", ["restore", "profile=micro", f"runs_dir={tmp_path / 'new'}"])
    with FileLock(held / ".lock"), pytest.raises(SystemExit, match=f"error: {held} is not finished and in use"):
        scripts.restore.main()
    assert "1 of 2 runs restored, the others stay\n" in capsys.readouterr().out
    assert runs.is_finished(target / f"z-{path.name}") and not runs.is_finished(held)


def reported(results, run, table="table1"):
    """Write a table that reports one score of the run named `run`, with its cell."""
    line = f"{table},measured,mos,0,gsm8k,12.5,4"
    cell = {"method": "mos", "dataset": "cot", "seed": 0, "run": run, "training": {}}
    cell["evaluation"] = {"gsm8k": {"scores": {"gsm8k": 12.5}, "items": 4}}
    for name, content in (
        (f"{table}.csv", f"table,source,method,seed,column,value,n_items\n{line}\n"),
        (f"{table}-times.json", json.dumps({"cells": {run: {}}})),
        (f"cells/tiny/mos-cot-seed0-{run}.json", json.dumps(cell)),
    ):
        storage.write_text(results / name, content)


def test_what_a_table_reports_must_still_be_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no table"):
        archive.behind(tmp_path, tmp_path, "micro")
    reported(tmp_path, "gone")
    with pytest.raises(FileNotFoundError, match=r"gone, of which .* reports, is no longer there"):
        archive.behind(tmp_path, tmp_path / "runs", "micro")


def test_a_cell_that_no_table_reports_is_not_packed_and_a_run_of_two_tables_once(tmp_path):
    for table in ("table1", "table2"):
        reported(tmp_path, "there", table)
    storage.write_text(tmp_path / "cells" / "tiny" / "mos-cot-seed9.json", json.dumps({"run": "gone"}))
    path = tmp_path / "runs" / "micro" / "tiny" / "there"
    storage.write_text(path / "run.json", "{}")
    assert archive.behind(tmp_path, tmp_path / "runs", "micro") == [path]


def test_the_two_commands_are_each_other_s_inverse(run, asked, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scripts.archive, "PUBLISHED", tmp_path / "published")
    monkeypatch.setattr(scripts.restore, "PUBLISHED", tmp_path / "published")
    reported(tmp_path / "results", run.name)
    (tmp_path / "results" / "cells" / "tiny").rename(tmp_path / "results" / "cells" / run.parent.name)
    monkeypatch.setattr(scripts.archive, "results_folder", lambda cfg, overrides: tmp_path / "results")
    profile = run.parents[1].name
    place = [f"runs_dir={run.parents[2]}", f"profile={profile}"]
    monkeypatch.setattr("sys.argv", ["archive", *place])
    scripts.archive.main()
    assert "1 runs" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["restore", f"profile={profile}", f"runs_dir={tmp_path / 'new'}"])
    scripts.restore.main()
    assert "1 of 1 runs restored" in capsys.readouterr().out
    assert runs.is_finished(tmp_path / "new" / profile / run.parent.name / run.name)
    scripts.restore.main()
    assert "0 of 1 runs restored, the others stay" in capsys.readouterr().out


def test_a_profile_without_published_runs_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scripts.restore, "PUBLISHED", tmp_path)
    monkeypatch.setattr("sys.argv", ["restore", "profile=micro"])
    with pytest.raises(SystemExit, match="holds no runs: those of the profile micro are not published"):
        scripts.restore.main()
