"""What a server holds, counted in its workers and shown in the API server's /metrics.

The worker writes into a small mapped file, since it does so in every step; the API server reads it when it is asked.
"""

import atexit
import mmap
import multiprocessing
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = "MOS_VLLM_METRICS"  # the environment variable that tells the workers where; the API server makes the folder
GAUGES = {
    "adapters_on_host": "MoS adapters held in host memory",
    "bytes_on_host": "Bytes of their pools",
    "adapters_on_device": "MoS adapters held in the device store, beside the slots",
    "bytes_on_device": "Bytes of their pools",
    "activations": "Times a MoS adapter was written into a slot",
    "activation_seconds": "Seconds that took on the host",
    "misses": "Activations whose pools had to be copied to the device first",
    "loads": "MoS adapters read from their folders",
    "load_seconds": "Seconds that took",
}
NUMBERS = struct.Struct(f"{len(GAUGES)}d")
_published = False  # by this process


class Counters:
    """One worker's numbers, in the order of GAUGES."""

    def __init__(self, worker: int) -> None:
        self.values = dict.fromkeys(GAUGES, 0.0)
        self.mapped = mapped(worker)

    def set(self, **values: float) -> None:
        self.values |= values
        NUMBERS.pack_into(self.mapped, 0, *self.values.values())

    def add(self, **values: float) -> None:
        self.set(**{name: self.values[name] + value for name, value in values.items()})


def mapped(worker: int) -> mmap.mmap:
    """The worker's file, or memory that nobody reads where there is no folder: none was made, or on another machine."""
    path = Path(os.environ.get(FOLDER, os.devnull)) / str(worker)
    try:
        path.write_bytes(bytes(NUMBERS.size))
        with path.open("r+b") as file:
            return mmap.mmap(file.fileno(), NUMBERS.size)
    except OSError:
        return mmap.mmap(-1, NUMBERS.size)


class Collector:
    """Prometheus' view of the workers' numbers."""

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        workers = {path.name: NUMBERS.unpack(path.read_bytes()) for path in sorted(Path(os.environ[FOLDER]).iterdir())}
        for place, (name, text) in enumerate(GAUGES.items()):
            gauge = GaugeMetricFamily(f"mos:{name}", text, labels=["worker"])
            for worker, numbers in workers.items():
                gauge.add_metric([worker], numbers[place])
            yield gauge


def publish() -> None:
    """Make the folder of the workers' numbers, and register the collector; once in a tree of vLLM's processes.

    An API server that somebody starts from such a process is a tree of its own, though it inherits the environment.
    """
    global _published
    inherited = FOLDER in os.environ and multiprocessing.parent_process() is not None
    if inherited or _published:
        return
    from prometheus_client import REGISTRY

    _published = True
    os.environ[FOLDER] = folder = tempfile.mkdtemp(prefix="mos-vllm-")
    atexit.register(remove, folder, os.getpid())
    REGISTRY.register(Collector())  # type: ignore[arg-type]


def remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker has inherited this
        shutil.rmtree(folder, ignore_errors=True)
