"""A demonstration: `vllm serve` with many MoS adapters, and clients that ask for them by name."""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np

from scripts.config import ROOT
from scripts.measure.harness import name_vllm
from scripts.measure.serving_bench import zipf
from scripts.measure.serving_inputs import Case

START = 180  # seconds that a server may take to start
STOP = 10  # seconds that it may take to stop, before it is killed
DRAWN = 100_000  # requests, which a longer stream repeats
PROMPT = "w5 w17 w33 w80 w41 "
TOKENS = 16
BASE = "base"  # the base model's name; the adapters' are numbers


class Server:
    """`vllm serve` with nothing but its own options. It has a process group of its own, which ends with the `with`."""

    def __init__(self, folder: Path, case: Case, *, on_host: int, slots: int) -> None:
        """folder: as `serving_inputs.thousand` makes it; on_host: max_cpu_loras; slots: max_loras"""
        self._packages = tempfile.TemporaryDirectory()
        name_vllm(Path(self._packages.name))
        name_plugin(Path(self._packages.name))
        self.log = Path(self._packages.name) / "server.log"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        options = {
            "served-model-name": BASE, "host": "127.0.0.1", "port": port, "dtype": "float32", "max-model-len": 128,
            "max-num-seqs": slots, "max-loras": slots, "max-cpu-loras": on_host, "max-lora-rank": case.rank,
            "generation-config": "vllm",
        }  # fmt: skip
        command = [str(Path(sys.executable).parent / "vllm"), "serve", str(folder / BASE), "--enable-lora"]
        command += ["--enforce-eager", *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                env=os.environ | variables(folder / "mos", Path(self._packages.name)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def wait(self) -> None:
        """Until it answers. Raises ChildProcessError with the end of its log if it does not."""
        limit = time.monotonic() + START
        while time.monotonic() < limit and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.5)
        end = self.log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise ChildProcessError(f"vLLM has not started within {START} s. Its log ends with:\n{end}")

    def metrics(self) -> dict[str, float]:
        """The plugin's gauges, without their prefix; zero before they are counted."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as response:
            lines = response.read().decode().splitlines()
        return {line[4:].split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("mos:")}

    def __exit__(self, *exception: object) -> None:
        """End all of its processes; a second Ctrl-C does not keep any of them alive."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._end()
        finally:
            signal.signal(signal.SIGINT, before)
            self._packages.cleanup()

    def _end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # vLLM's engine outlives its API server by up to a minute
        self.process.wait()


def name_plugin(packages: Path) -> None:
    """vLLM finds plugins by the entry points of distributions; where this one is not installed, an empty one has it."""
    if not entry_points(group="vllm.general_plugins", name="mos"):
        named = packages / "mos_peft_here-0.dist-info"
        named.mkdir()
        (named / "METADATA").write_text("Metadata-Version: 2.1\nName: mos-peft-here\nVersion: 0\n", encoding="utf-8")
        (named / "entry_points.txt").write_text("[vllm.general_plugins]\nmos = mos_vllm:register\n", encoding="utf-8")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def variables(adapters: Path, packages: Path) -> dict[str, str]:
    """For vLLM's processes: adapters by name, and what a CPU needs where there is no GPU."""
    import torch

    from eval.engines.environment import cpu_environment

    path = os.pathsep.join(filter(None, [str(ROOT), str(packages), os.environ.get("PYTHONPATH")]))
    given = {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_LORA_RESOLVER_CACHE_DIR": str(adapters), "PYTHONPATH": path,
        "VLLM_NO_USAGE_STATS": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }  # fmt: skip
    return given if torch.cuda.is_available() else given | cpu_environment(1, 1)


class Answer(NamedTuple):
    """adapter: its number; first: seconds to the first token; error: None if it was answered"""

    adapter: int
    first: float
    error: str | None


def stream(
    url: str, adapters: int, clients: int, seconds: float, show: Callable[[list[Answer], float], None]
) -> list[Answer]:
    """Ask for `adapters` by name, Zipf 1.0, with so many clients at once; Ctrl-C ends it early.

    show: called once a second with what has been answered, and the seconds so far
    """
    drawn, answers, stop = itertools.cycle(zipf(0, DRAWN, adapters)), list[Answer](), threading.Event()
    taking = threading.Lock()

    def client() -> None:
        while not stop.is_set():
            with taking:
                number = next(drawn)
            answers.append(answer(url, number))

    begun = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client) for _ in range(clients)]
        try:
            while (passed := time.monotonic() - begun) < seconds and not any(each.done() for each in running):
                show(answers.copy(), passed)
                time.sleep(1)
        except KeyboardInterrupt:
            pass
        finally:
            stop.set()
    for each in running:
        each.result()
    return answers


def answer(url: str, number: int) -> Answer:
    """One streamed completion from the adapter of that name, by the OpenAI client."""
    import openai

    client, begun = connected(url), time.monotonic()
    try:
        parts: Iterator[Any] = client.completions.create(
            model=str(number), prompt=PROMPT, max_tokens=TOKENS, temperature=0, stream=True
        )
        next(parts)
        first = time.monotonic() - begun
        for _ in parts:
            pass
    except openai.OpenAIError as error:
        return Answer(number, time.monotonic() - begun, str(error))
    return Answer(number, first, None)


_clients = threading.local()


def connected(url: str) -> Any:
    """This thread's client."""
    import openai

    if not hasattr(_clients, "client"):
        _clients.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    return _clients.client


def line(answers: list[Answer], seconds: float, metrics: dict[str, float]) -> str:
    """What has been answered so far, and what the server holds."""
    waits = [1e3 * each.first for each in answers if each.error is None] or [float("nan")]
    return (
        f"{seconds:4.0f} s  {len(answers):6,} requests  {len(answers) / max(seconds, 1e-9):6.1f}/s  "
        f"first token p50 {np.percentile(waits, 50):5.0f} ms, p99 {np.percentile(waits, 99):5.0f} ms  "
        f"{metrics.get('adapters_on_host', 0):5,.0f} adapters held"
    )


def summed(answers: list[Answer], seconds: float, metrics: dict[str, float], exported: int) -> str:
    """The table at the end. exported: bytes of one adapter as a LoRA"""
    waits = [1e3 * each.first for each in answers if each.error is None] or [float("nan")]
    held, loads = metrics.get("adapters_on_host", 0), metrics.get("loads", 0)
    one = metrics.get("bytes_on_host", 0) / max(held, 1)
    rows = {
        "requests": f"{len(answers):,}, of which {sum(each.error is not None for each in answers)} failed",
        "requests/s": f"{len(answers) / max(seconds, 1e-9):.1f}",
        "first token, p50 / p99": f"{np.percentile(waits, 50):.0f} / {np.percentile(waits, 99):.0f} ms",
        "adapters asked for": f"{len({each.adapter for each in answers}):,}",
        "adapters held": f"{held:,.0f}",
        "requests whose adapter was held": f"{1 - loads / max(len(answers), 1):.1%}",
        "bytes of an adapter, native / exported": f"{one:,.0f} / {exported:,} ({one / exported:.3f})",
        "bytes of those held, native / exported": f"{metrics.get('bytes_on_host', 0):,.0f} / {held * exported:,.0f}",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows.items())


def tensor_bytes(file: Path) -> int:
    """Bytes of the tensors in a safetensors file."""
    with file.open("rb") as opened:
        header = int.from_bytes(opened.read(8), "little")
        entries = json.loads(opened.read(header))
    return max(entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__")
