"""Prints the profile that fits this machine: `python -m scripts.profile`."""

import sys


def default_profile() -> str:
    """The profile for this machine: `paper` on a GPU with at least 24 GiB, else `micro`; says so on stderr."""
    import torch

    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    large = gpu is not None and gpu.total_memory >= 24 * 2**30
    found = f"{gpu.name} with {gpu.total_memory / 2**30:.0f} GiB" if gpu else "no GPU"
    chosen = "paper" if large else "micro"
    print(f"PROFILE is not set; found {found}: profile '{chosen}'", file=sys.stderr)
    return chosen


if __name__ == "__main__":
    print(default_profile())
