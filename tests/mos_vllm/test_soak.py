"""A server under loads, unloads, reloads and killed clients: every accepted request is answered, memory stays flat.

MOS_SOAK_MINUTES=10 python -m pytest -q tests/mos_vllm/test_soak.py      half a minute without the variable
"""

import http.client
import itertools
import json
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")
pytest.importorskip("openai", reason="the OpenAI client is not installed")
from tests.mos_vllm.running import ready
from tests.mos_vllm.test_server import ADAPTERS, PROMPT, Server, make_adapters

pytestmark = pytest.mark.slow
MINUTES = float(os.environ.get("MOS_SOAK_MINUTES", "0.5"))
CLIENTS = 4
MIB = 1 << 20
# What memory may grow by: no more than the noise of some minutes; in half a minute caches still fill.
ALLOWED = 5.0 if MINUTES >= 3 else 60.0  # MiB a minute
# oneDNN keeps what it has compiled for the last 1,024 shapes of products, which mixed batches fill for longer than this
# runs. With fewer it is full before the slope is taken, and what still grows is a leak.
SHAPES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32"}


@pytest.fixture(scope="module")
def server(tmp_path_factory, plugin_environment):
    work = tmp_path_factory.mktemp("soak")
    make_adapters(work)
    with ready(Server(work, plugin_environment | SHAPES)) as server:
        yield server


def resident(session):
    """Bytes in memory of all processes of a session, each page counted where it is held."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(status.read_text(encoding="utf-8").rpartition(")")[2].split()[3]) == session:
                lines = (status.parent / "smaps_rollup").read_text(encoding="utf-8").splitlines()
                total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
        except (OSError, StopIteration):
            continue
    return total


class Soak:
    """What goes on at the same time. Each activity is called again and again until the time is over."""

    def __init__(self, server, expected):
        self.server, self.expected = server, expected
        self.stop, self.random = threading.Event(), random.Random(0)
        self.counts = dict.fromkeys(("answered", "loaded", "reloaded", "unloaded", "refused", "aborted", "killed"), 0)

    def run(self, minutes):
        activities = [self.ask] * CLIENTS + [self.load_and_unload, self.reload, self.abort, self.kill]
        with ThreadPoolExecutor(len(activities)) as pool:
            running = [pool.submit(self.again, activity, number) for number, activity in enumerate(activities)]
            begun, samples = time.monotonic(), []
            while (passed := time.monotonic() - begun) < 60 * minutes and not any(each.done() for each in running):
                samples.append((passed / 60, resident(self.server.process.pid) / MIB))
                time.sleep(1)
            self.stop.set()
        for each in running:
            each.result()
        return np.array(samples)

    def again(self, activity, number):
        for turn in itertools.count():
            if self.stop.is_set():
                return
            activity(f"{number}-{turn}")

    def ask(self, _):
        name = self.random.choice(list(self.expected))
        assert self.server.text(name) == self.expected[name], name
        self.counts["answered"] += 1

    def load_and_unload(self, turn):
        number = self.random.randrange(ADAPTERS)
        name = f"dynamic {turn}"
        assert self.server.load(name, self.server.work / "named" / f"mos-{number}")[0] == 200
        assert self.server.text(name) == self.expected[f"mos-{number}"]
        assert self.server.post("/v1/unload_lora_adapter", lora_name=name)[0] == 200
        assert self.server.load(name, self.server.work / "broken")[0] == 400
        for count in ("loaded", "unloaded", "refused"):
            self.counts[count] += 1

    def reload(self, turn):
        """The same weights in new files, so that what is answered meanwhile stays the same."""
        live = self.server.work / "live"
        shutil.copy(self.server.work / "named/mos-1/adapter_model.safetensors", live / "new")
        (live / "new").replace(live / "adapter_model.safetensors")
        assert self.server.load("live", live, load_inplace=True)[0] == 200
        assert self.server.text("live") == self.expected["mos-1"]
        self.counts["reloaded"] += 1
        time.sleep(0.2)

    def abort(self, _):
        """A client that goes away in the middle of its answer, with a reset of its connection."""
        host, port = self.server.url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        connection.request("POST", "/v1/completions", body(self.random.randrange(ADAPTERS)),
                           {"Content-Type": "application/json"})  # fmt: skip
        assert connection.getresponse().read(10)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sock.close()
        self.counts["aborted"] += 1
        time.sleep(0.1)

    def kill(self, _):
        """A client process that is killed while it waits."""
        program = "import sys, urllib.request as u; u.urlopen(u.Request(sys.argv[1], sys.argv[2].encode(), "
        program += "{'Content-Type': 'application/json'})).read(1); print('x', flush=True); import time; time.sleep(60)"
        command = [sys.executable, "-c", program, f"{self.server.url}/v1/completions", body(0)]
        client = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert client.stdout.read(1) == b"x"
        client.kill()
        client.communicate()
        self.counts["killed"] += 1
        time.sleep(1)


def body(number):
    return json.dumps({"model": f"mos-{number}", "prompt": PROMPT, "max_tokens": 100, "stream": True})


def test_soak(server, capsys):
    shutil.copytree(server.work / "named/mos-1", server.work / "live")
    broken = shutil.copytree(server.work / "named/mos-0", server.work / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"{")
    assert server.load("live", server.work / "live")[0] == 200
    names = [f"mos-{number}" for number in range(ADAPTERS)] + ["static", "static-lora", "base", "live"]
    expected = {name: server.text(name) for name in names}
    assert expected["static"] == expected["mos-0"] and expected["static-lora"] == expected["mos-1"] == expected["live"]
    soak = Soak(server, expected)
    samples = soak.run(MINUTES)
    later = samples[len(samples) // 3 :]  # caches have filled by then
    slope = float(np.polyfit(later[:, 0], later[:, 1], 1)[0])
    with capsys.disabled():
        print(f"\n{MINUTES} minutes: {soak.counts}; memory {samples[0, 1]:.0f} MiB at first, {samples[-1, 1]:.0f} at "
              f"last, slope {slope:+.2f} MiB a minute")  # fmt: skip
    assert all(soak.counts.values())
    assert slope < ALLOWED
    gauges = server.metrics("vllm:num_requests_")
    assert not any(gauges.values()), gauges  # of those that went away too, none goes on
    assert 1 <= server.metrics()["mos:adapters_on_host"] <= 4
