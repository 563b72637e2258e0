"""The demonstration: what it shows, and that nothing of it is left running, however it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import distributions
from pathlib import Path

import pytest
from safetensors.torch import load_file

from scripts import serve_demo
from scripts.measure import serving_demo as demo
from scripts.measure.serving_demo import Answer, Server, line, stream, summed, tensor_bytes
from scripts.measure.serving_inputs import WEIGHTS, Case, thousand

ROOT = Path(__file__).parents[3]
CASE = Case(blocks=8, hidden=64, rank=8, equivalent_rank=2, shards=4, adapters=3)
ANSWERS = [Answer(0, 0.1, None), Answer(0, 0.2, None), Answer(3, 0.3, None), Answer(4, 9.0, "Connection error.")]


def test_the_lines_and_the_table_count_what_was_answered():
    metrics = {"adapters_on_host": 2.0, "bytes_on_host": 200.0, "loads": 3.0}
    shown = " ".join(line(ANSWERS, 2.0, metrics).split())
    assert shown == "2 s 4 requests 2.0/s first token p50 200 ms, p99 298 ms 2 adapters held"
    table = summed(ANSWERS, 2.0, metrics, 400)
    for row in ("4, of which 1 failed", "2.0", "200 / 298 ms", "3", "25.0%", "100 / 400 (0.250)", "200 / 800"):
        assert any(each.endswith(f"  {row}") for each in table.splitlines()), row


def test_nothing_answered_is_no_error():
    assert "0 requests" in line([], 0.0, {})
    assert "0, of which 0 failed" in summed([], 0.0, {}, 400)


def test_each_adapter_of_the_thousand_has_weights_of_its_own(tmp_path):
    folder = thousand(CASE, tmp_path)
    tensors = [load_file(folder / "mos" / str(number) / WEIGHTS) for number in range(3)]
    for name in tensors[0]:
        same = [bool((each[name] == tensors[0][name]).all()) for each in tensors]
        assert same == ([True, False, False] if name.endswith(("mos_A", "mos_B")) else [True] * 3)
    lora = load_file(folder / "lora" / "0" / WEIGHTS)
    assert tensor_bytes(folder / "lora" / "0" / WEIGHTS) == sum(each.nbytes for each in lora.values())
    assert thousand(CASE, tmp_path) == folder


def test_a_stream_ends_in_time_and_at_ctrl_c(monkeypatch):
    monkeypatch.setattr(demo, "answer", lambda url, number: time.sleep(0.01) or Answer(number, 0.01, None))
    begun = time.monotonic()
    assert len(stream("", 10, 2, 0.5, lambda answers, seconds: None)) > 10
    assert time.monotonic() - begun < 3

    def interrupted(answers, seconds):
        raise KeyboardInterrupt

    assert all(each.error is None for each in stream("", 10, 2, 60, interrupted))


def test_a_stream_outlasts_what_was_drawn(monkeypatch):
    monkeypatch.setattr(demo, "DRAWN", 5)
    monkeypatch.setattr(demo, "answer", lambda url, number: time.sleep(0.01) or Answer(number, 0.01, None))
    answers = stream("", 10, 2, 0.3, lambda answers, seconds: None)
    assert len(answers) > 10 and len({each.adapter for each in answers}) <= 5


@pytest.mark.parametrize(
    "arguments",
    [["--adapters", "0"], ["--clients", "0"], ["--clients", "-1"], ["--seconds", "0"], ["--seconds", "nan"]],
)
def test_a_number_that_cannot_be_is_refused_before_anything_is_made(monkeypatch, capsys, arguments):
    monkeypatch.setattr(serve_demo, "thousand", None)
    with pytest.raises(SystemExit):
        serve_demo.main(arguments)
    assert "--adapters and --clients must be at least 1, and --seconds above 0." in capsys.readouterr().err


def test_a_server_that_does_not_start_is_no_traceback(stubborn, monkeypatch):
    (stubborn / "bin" / "vllm").write_text("#!/bin/sh\necho no such model; exit 1\n", encoding="utf-8")
    monkeypatch.setattr(serve_demo, "thousand", lambda case, cache: stubborn)
    with pytest.raises(SystemExit, match=r"error: vLLM has not started within .*\nno such model"):
        serve_demo.main([])


def test_an_error_of_a_client_is_not_hidden(monkeypatch):
    monkeypatch.setattr(demo, "answer", lambda url, number: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stream("", 10, 2, 60, lambda answers, seconds: None)


@pytest.fixture
def stubborn(tmp_path, monkeypatch):
    """A `vllm` that starts a second process and ignores SIGTERM, as does that one. It writes their ids."""
    (tmp_path / "bin").mkdir()
    script = f"""#!{sys.executable}
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
second = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
child = subprocess.Popen([{sys.executable!r}, "-c", second])
open({str(tmp_path / "ids")!r}, "w", encoding="utf-8").write(f"[{{os.getpid()}}, {{child.pid}}]")
time.sleep(60)
"""
    (tmp_path / "bin" / "vllm").write_text(script, encoding="utf-8")
    (tmp_path / "bin" / "vllm").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    monkeypatch.setattr(demo, "STOP", 0.3)
    return tmp_path


def is_running(number):
    try:
        return "Z" not in Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")
def test_no_process_is_left_also_of_a_server_that_ignores_a_request_to_stop(stubborn):
    with Server(stubborn, CASE, on_host=8, slots=2):
        while not (stubborn / "ids").exists() or not (stubborn / "ids").stat().st_size:
            time.sleep(0.02)
        ids = json.loads((stubborn / "ids").read_text(encoding="utf-8"))
        assert all(map(is_running, ids))
    time.sleep(0.1)
    assert not any(map(is_running, ids))


def test_a_server_that_does_not_start_shows_its_log(stubborn, monkeypatch):
    (stubborn / "bin" / "vllm").write_text("#!/bin/sh\necho no such model; exit 1\n", encoding="utf-8")
    with Server(stubborn, CASE, on_host=8, slots=2) as server, pytest.raises(ChildProcessError, match="no such model"):
        server.wait()


@pytest.mark.parametrize("installed", [False, True])
def test_the_plugin_is_named_once(tmp_path, monkeypatch, installed):
    monkeypatch.setattr(demo, "entry_points", lambda **asked: ["mos"] if installed else [])
    demo.name_plugin(tmp_path)
    found = [point.value for each in distributions(path=[str(tmp_path)]) for point in each.entry_points]
    assert found == ([] if installed else ["mos_vllm:register"])


def left(cache):
    """The processes that were started for adapters in `cache`."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"VLLM_LORA_RESOLVER_CACHE_DIR={cache}".encode() in environment.read_bytes():
                found.append(environment.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", ["to its end", "Ctrl-C"])
def test_the_demonstration(tmp_path, how):
    pytest.importorskip("vllm", reason="vLLM is not installed")
    options = ["--adapters", "20", "--clients", "4", "--seconds", "6" if how == "to its end" else "600"]
    command = [sys.executable, "-m", "scripts.serve_demo", *options, "--cache-dir", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env=os.environ | {"PYTHONUNBUFFERED": "1"})  # fmt: skip
    shown = []
    for each in process.stdout:
        shown.append(each)
        if how == "Ctrl-C" and "requests" in each and left(tmp_path):
            process.send_signal(signal.SIGINT)
            break
    rest, errors = process.communicate(timeout=300)
    table = "".join(shown) + rest
    assert process.returncode == 0, errors[-3000:]
    assert ", of which 0 failed" in table and "bytes of an adapter, native / exported" in table
    assert not left(tmp_path)
