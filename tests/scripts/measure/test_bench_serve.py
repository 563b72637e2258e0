"""The serving bench: turns, intervals, what is measured again, and one small run of all figures."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from scripts import bench_serve
from scripts.measure import serving_engine, serving_table
from scripts.measure.serving_bench import Measured, Sizes, exact, in_turns, neighbours, percentiles, zipf
from scripts.measure.serving_engine import in_memory, uncache
from scripts.measure.serving_inputs import name_again
from scripts.measure.training import Ratio

ROOT = Path(__file__).parents[3]


def test_arms_change_places_with_each_round_and_the_first_does_not_count():
    order = []

    def arm(name, turn):
        order.append((turn, name))
        return turn

    found = in_turns(3, {name: lambda turn, name=name: arm(name, turn) for name in ("a", "b")})
    assert found == {"a": [1, 2, 3], "b": [1, 2, 3]}
    assert [name for _, name in order] == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_a_drifting_machine_does_not_change_a_ratio():
    slower = [1.3**turn for turn in range(8)]
    assert neighbours([2 * each for each in slower], slower) == (2, 2, 2)


def test_percentiles_are_those_of_the_rounds_within_their_interval():
    random = np.random.default_rng(1)
    one, other = random.normal(2, 0.1, 200), random.normal(4, 0.1, 200)
    for q in (50, 99):
        ratio = percentiles(one, other, q)
        assert ratio.median == pytest.approx(np.percentile(one, q) / np.percentile(other, q))
        assert ratio.low < ratio.median < ratio.high and ratio.high - ratio.low < 0.1


def test_the_stream_is_zipf_and_the_same_for_each_arm():
    drawn = zipf(3, 20_000, 100)
    assert drawn == zipf(3, 20_000, 100) != zipf(4, 20_000, 100)
    counts = Counter(drawn)
    assert counts[0] / counts[1] == pytest.approx(2, rel=0.1) and counts[0] / counts[9] == pytest.approx(10, rel=0.2)
    assert set(drawn) <= set(range(100))


@pytest.mark.parametrize(
    ("measured", "met", "said"),
    [
        (Measured("f", exact(0.25), "d", 0.26), True, "at most 0.26"),
        (Measured("f", exact(0.27), "d", 0.26), False, "at most 0.26, missed"),
        (Measured("f", Ratio(0.95, 0.9, 1.0), "d", 0.9, at_least=True), True, "at least 0.9"),
        (Measured("f", Ratio(0.85, 0.8, 0.9), "d", 0.9, at_least=True), False, "at least 0.9, missed"),
        (Measured("f", exact(1.0), "d"), None, "-"),
    ],
)
def test_a_missed_aim_is_said(measured, met, said):
    assert measured.met is met
    assert serving_table.cells(measured)[2] == said


def test_a_figure_is_measured_once_under_the_same_conditions(tmp_path):
    path, calls = tmp_path / "new" / "figure.json", []

    def measure():
        calls.append(1)
        return [Measured("f", Ratio(1.0, 0.5, 2.0), "d", 2.0, at_least=True), Measured("g", exact(3.0), "e")]

    first = serving_table.once(path, Sizes(), measure)
    assert serving_table.once(path, Sizes(), measure) == first and len(calls) == 1
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["provenance"]["hardware"]["cpu"] and written["conditions"]["sizes"]["rounds"] == Sizes().rounds
    serving_table.once(path, Sizes(rounds=2), measure)
    assert len(calls) == 2


def test_other_code_of_the_server_is_measured_again(tmp_path, monkeypatch):
    path, calls = tmp_path / "figure.json", []
    for key in ("a", "b", "b"):
        monkeypatch.setattr(serving_table, "code_key", lambda package, key=key: key)
        serving_table.once(path, Sizes(), lambda: calls.append(1) or [])
    assert len(calls) == 2


@pytest.mark.parametrize("changed", ["hardware", "versions"])
def test_another_machine_is_measured_again(tmp_path, monkeypatch, changed):
    """The line above the table names one machine."""
    path, calls, here = tmp_path / "figure.json", [], serving_table.provenance()
    for other in ({}, {changed: {"cpu": "another"}}, {changed: {"cpu": "another"}}):
        monkeypatch.setattr(serving_table, "provenance", lambda other=other: here | other)
        serving_table.once(path, Sizes(), lambda: calls.append(1) or [])
    assert len(calls) == 2


def test_other_code_that_measures_is_measured_again(tmp_path, monkeypatch):
    path, calls = tmp_path / "figure.json", []
    for key in ("a", "b"):
        keys = {"mos_vllm": "same", "scripts/measure": key}
        monkeypatch.setattr(serving_table, "code_key", keys.__getitem__)
        serving_table.once(path, Sizes(), lambda: calls.append(1) or [])
    assert len(calls) == 2


def test_the_page_has_a_place_for_the_table():
    page = bench_serve.PAGE.read_text(encoding="utf-8")
    once = serving_table.filled(page, "| new |")
    assert "<!-- make bench-serve -->\n| new |\n<!-- end -->" in once
    assert serving_table.filled(once, "| newer |").count("| newer |") == 1
    with pytest.raises(ValueError, match="make bench-serve"):
        serving_table.filled("# A page", "| new |")


def test_the_table_is_markdown():
    lines = serving_table.table([Measured("f", Ratio(1.0, 0.5, 2.0), "d"), Measured("g", exact(3.0), "e")]).splitlines()
    assert len(lines) == 4 and {line.count("|") for line in lines} == {5}
    assert "1.000 [0.500, 2.000]" in lines[2] and "| 3.000 |" in lines[3]
    assert "r=64, e=16" in serving_table.described(Sizes())


def test_an_unknown_figure_is_refused(capsys):
    with pytest.raises(SystemExit):
        bench_serve.main(["speed"])
    assert "'speed' is no figure; choose of bytes, cold" in capsys.readouterr().err


def test_a_second_name_has_the_same_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("x", encoding="utf-8")
    name_again(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "file").samefile(tmp_path / "a" / "file")


def test_uncached_files_are_whole_and_not_in_memory(tmp_path):
    content, file = os.urandom(1 << 20), tmp_path / "file"
    file.write_bytes(content)
    assert in_memory(file)
    try:
        uncache(tmp_path)
    except OSError as error:
        pytest.skip(str(error))
    assert not in_memory(file)
    assert file.read_bytes() == content and in_memory(file)


def test_files_that_stay_in_memory_are_refused_before_an_engine_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "posix_fadvise", lambda *_: None)
    monkeypatch.setattr(bench_serve, "Bench", None)
    with pytest.raises(SystemExit) as stopped:
        bench_serve.main(["cold", "--out", str(tmp_path / "out"), "--cache-dir", str(tmp_path / "cache")])
    assert stopped.value.code == 2
    assert "is kept in memory: name a folder on a disk with --cache-dir." in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not list((tmp_path / "cache").iterdir())


def test_a_file_that_is_being_written_is_waited_for(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"x")
    answers = iter([True, True, False])
    monkeypatch.setattr(serving_engine, "in_memory", lambda _: next(answers))
    uncache(tmp_path)
    assert list(answers) == []


@pytest.mark.slow
def test_every_figure_is_measured(tmp_path):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    sizes = {
        "small-hidden": 64, "small-r": 8, "small-e": 2, "large-hidden": 64, "adapters": 30, "registered": 50,
        "slots": 4, "rounds": 2, "small-requests": 12, "large-requests": 12, "tokens": 3, "cold": 4,
    }  # fmt: skip
    options = [part for name, size in sizes.items() for part in (f"--{name}", str(size))]
    places = ["--out", str(tmp_path / "results"), "--cache-dir", str(tmp_path / "cache")]
    command = [sys.executable, "-m", "scripts.bench_serve", *places, *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {}
    for path in (tmp_path / "results").iterdir():
        rows |= {row["figure"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}
    assert all(row["ratio"][0] > 0 for row in rows.values())
    ratios = {figure: row["ratio"][0] for figure, row in rows.items()}
    assert ratios["Tensor-writing operations of an activation, at 16 blocks / at 8"] == 1
    assert ratios["Bytes held of an adapter: native / exported"] < 0.3
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert again.stdout == done.stdout and not again.returncode  # nothing is measured again
