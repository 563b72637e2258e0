"""The environment variables under which vLLM runs here. They are set before vLLM is imported."""

import os
from collections.abc import Mapping

from joblib import cpu_count

ALWAYS = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    # One process: it starts in half the time, and after `kill -9` nothing is left that holds the GPU's memory.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # If vLLM does start a process, it must not fork one that has used CUDA.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # Its warm-up compiles with nvcc, which images with a driver only lack. Our requests are greedy or seeded, and such
    # requests never use this sampler.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}
ON_CPU = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # binding leaves one core idle and collides with other processes
    "TORCH_COMPILE_DISABLE": "1",  # compiling two small sampling helpers takes 15 s each
}


def cpu_environment(kv_cache_gib: int, threads: int | None = None) -> dict[str, str]:
    """The further variables without CUDA. kv_cache_gib: GiB for cached keys and values; threads None: all cores."""
    threads = threads or cpu_count()
    return ON_CPU | {"VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gib), "OMP_NUM_THREADS": str(threads)}


def set_environment(variables: Mapping[str, str]) -> None:
    """Set variables for the rest of the process, because vLLM reads them at any time. One that is set already wins."""
    for name, value in variables.items():
        os.environ.setdefault(name, value)
