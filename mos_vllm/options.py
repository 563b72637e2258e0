"""The plugin's options.   vllm serve BASE --additional-config '{"mos": {"device_store_gib": 8, "preload": "users"}}'"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

GIB = 1 << 30


@dataclass(frozen=True)
class Options:
    """device_store_gib: memory on the device for adapters beside the slots, taken before vLLM sizes its KV cache.
    None: 1 on an accelerator; 0 on a CPU, whose memory holds the adapters anyway.
    preload: a folder whose sub-folders are read at start, as many as max_cpu_loras.

    Raises ValueError for a size that is no positive number, and for a folder that does not exist.
    """

    device_store_gib: float | None = None
    preload: str | None = None

    def __post_init__(self) -> None:
        size = self.device_store_gib
        if size is not None and (not isinstance(size, int | float) or isinstance(size, bool) or not 0 <= size < 1e6):
            raise ValueError(f"The option mos.device_store_gib={size!r} must be a number of GiB, 0 or more.")
        if self.preload is not None and not is_folder(self.preload):
            raise ValueError(f"The option mos.preload={self.preload!r} is not a folder.")

    def device_bytes(self, device_type: str) -> int:
        default = 0.0 if device_type == "cpu" else 1.0
        return int(GIB * (default if self.device_store_gib is None else self.device_store_gib))


def is_folder(name: Any) -> bool:
    try:
        return isinstance(name, str) and bool(name) and Path(name).is_dir()
    except (OSError, ValueError):  # a name that no file system takes
        return False


def read_options(additional_config: Any) -> Options:
    """The options under "mos" in vLLM's additional_config. Raises ValueError for a name that is none."""
    given = additional_config.get("mos", {}) if isinstance(additional_config, dict) else {}
    known = [field.name for field in fields(Options)]
    if not isinstance(given, dict) or (unknown := sorted(map(str, set(given) - set(known)))):
        what = given if not isinstance(given, dict) else unknown[0]
        raise ValueError(f"The option mos of additional_config does not take {what!r}. Known: {', '.join(known)}.")
    return Options(**given)
