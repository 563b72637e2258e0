"""The plugin's options, and its numbers in /metrics."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mos_vllm.metrics import FOLDER, GAUGES, NUMBERS, Collector, Counters, publish
from mos_vllm.options import GIB, Options, read_options


def test_options_are_read_from_additional_config(tmp_path):
    options = read_options({"mos": {"device_store_gib": 2.5, "preload": str(tmp_path)}, "other": 1})
    assert options == Options(2.5, str(tmp_path))
    assert options.device_bytes("cuda") == options.device_bytes("cpu") == 2.5 * GIB


def test_the_store_takes_a_gib_on_an_accelerator_and_nothing_on_a_cpu():
    assert [read_options(given).device_bytes("cuda") for given in ({}, {"mos": {}}, object())] == [GIB] * 3
    assert read_options({}).device_bytes("cpu") == 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device_gib": 1}, "'device_gib'. Known: device_store_gib, preload"),
        ([1], r"\[1\]"),
        ("device_store_gib", "'device_store_gib'"),
        ({"device_store_gib": -1}, "device_store_gib=-1"),
        ({"device_store_gib": "1"}, "device_store_gib='1'"),
        ({"device_store_gib": float("nan")}, "device_store_gib=nan"),
        ({"device_store_gib": True}, "device_store_gib=True"),
        ({"preload": "/nowhere/at/all"}, "'/nowhere/at/all' is not a folder"),
        ({"preload": ""}, "'' is not a folder"),
        ({"preload": 5}, "5 is not a folder"),
        ({"preload": ["users"]}, "is not a folder"),
        ({"preload": "a" * 5000}, "is not a folder"),
        ({"preload": "a\0"}, "is not a folder"),
        ({"a": 1, 2: 1}, "does not take"),
    ],
)
def test_a_wrong_option_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        read_options({"mos": given})


def test_the_collector_shows_what_each_worker_counted(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path))
    for worker in range(2):
        counters = Counters(worker)
        counters.add(loads=2, load_seconds=0.5)
        counters.add(loads=1 + worker)
        counters.set(adapters_on_host=7)
    shown = {metric.name: {s.labels["worker"]: s.value for s in metric.samples} for metric in Collector().collect()}
    assert shown.keys() == {f"mos:{name}" for name in GAUGES}
    assert shown["mos:loads"] == {"0": 3, "1": 4} and shown["mos:load_seconds"] == {"0": 0.5, "1": 0.5}
    assert shown["mos:adapters_on_host"] == {"0": 7, "1": 7} and shown["mos:misses"] == {"0": 0, "1": 0}


def test_without_an_api_server_numbers_are_counted_all_the_same(monkeypatch):
    monkeypatch.delenv(FOLDER, raising=False)
    counters = Counters(0)
    counters.add(misses=3)
    assert NUMBERS.unpack(counters.mapped[:])[list(GAUGES).index("misses")] == 3


def test_the_first_process_makes_the_folder_and_removes_it():
    code = (
        "import os; from mos_vllm.metrics import FOLDER, publish; publish(); first = os.environ[FOLDER]; publish();"
        "assert os.environ[FOLDER] == first and os.path.isdir(first); print(first)"
    )
    environment = {name: value for name, value in os.environ.items() if name != FOLDER}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert "mos-vllm-" in done.stdout
    assert not Path(done.stdout.strip()).exists()


def test_a_process_within_shows_nothing_of_its_own(tmp_path, monkeypatch):
    from prometheus_client import REGISTRY

    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setattr("multiprocessing.parent_process", lambda: object())
    before = len(REGISTRY._collector_to_names)
    publish()
    assert len(REGISTRY._collector_to_names) == before


def test_a_server_that_is_started_from_a_server_s_process_has_numbers_of_its_own():
    inner = "import os; from mos_vllm.metrics import FOLDER, publish; publish(); print(os.environ[FOLDER])"
    code = (
        "import os, subprocess, sys; from mos_vllm.metrics import FOLDER, publish; publish();"
        f"done = subprocess.run([sys.executable, '-c', {inner!r}], capture_output=True, text=True, check=True);"
        "assert done.stdout.strip() not in ('', os.environ[FOLDER])"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_that_is_gone_or_on_another_machine_does_no_harm(tmp_path, monkeypatch):
    monkeypatch.setenv(FOLDER, str(tmp_path / "gone"))
    counters = Counters(0)
    counters.add(loads=2)
    assert NUMBERS.unpack(counters.mapped[:])[list(GAUGES).index("loads")] == 2
