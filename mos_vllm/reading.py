"""Reading an adapter folder: safetensors only, checked before and after the tensors are read."""

import hashlib
import json
import os
import reprlib
import stat
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor

from mos_vllm.adapter import (
    Adapter,
    AdapterError,
    Pools,
    Shape,
    block_numbers,
    check_shapes,
    check_values,
    layer_type,
)

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PACKED = "mos_packed.safetensors"
PACKED_FORMAT = "mos-packed-1"
ROOT = "base_model.model."  # PEFT's prefix of every module in a saved adapter
PARAMETERS = ("mos_A", "mos_B", "mos_index", "mos_scale")
MAX_CONFIG_BYTES = 1 << 20
MAX_ALPHA = 1e30
SAMPLES, SAMPLE = 16, 512  # places in a file that tell it from another of the same size, and the bytes of each
TYPES = ("F16", "BF16", "F32", "F64", "I16", "I32", "I64")  # in which MoS saves; of indices, and of all else

Stamp = tuple[tuple[int, int, int], ...]


def read_config(folder: Path) -> dict[str, Any]:
    """The settings in an adapter folder, of whatever method.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no adapter_config.json.
        AdapterError: it cannot be read, or is not a JSON object.
    """
    path = folder / CONFIG
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, ValueError) as error:  # a circle of links, a name that is too long, or with a NUL
        raise AdapterError(folder, f"cannot be read: {error}.") from error
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
        raise AdapterError(folder, f"has a folder, a pipe or a device in place of {CONFIG}.")
    if status.st_size > MAX_CONFIG_BYTES:
        raise AdapterError(folder, f"has an {CONFIG} of {status.st_size} bytes, which is no configuration.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AdapterError(folder, f"has an {CONFIG} that cannot be read: {error}.") from error
    except (ValueError, RecursionError) as error:
        raise AdapterError(folder, f"has an {CONFIG} that is not JSON: {error}.") from error
    if not isinstance(config, dict):
        raise AdapterError(folder, f"has an {CONFIG} that is not a JSON object.")
    return config


def is_mos(config: dict[str, Any]) -> bool:
    return config.get("peft_type") == "MOS"


def names_folder(name: str) -> bool:
    """Whether `name` is that of a sub-folder.

    A name with a separator could leave the folder that it is looked for in, or be a second name of one adapter.
    """
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")


def sub_folder(root: Path, name: str) -> Path | None:
    """The folder called `name` in `root`, if it holds an adapter of whatever method."""
    if not names_folder(name):
        return None
    folder = root.absolute() / name
    try:
        return folder if (folder / CONFIG).is_file() else None
    except (OSError, ValueError):  # a name that no file system takes
        return None


def folder_of(path: str) -> Path:
    """The folder that vLLM means by an adapter's path."""
    return Path(path if "\0" in path else os.path.expanduser(path))  # noqa: PTH111  # pathlib's raises for no such user


def stamp(folder: Path) -> Stamp:
    """Changes when a file of the adapter is replaced or rewritten: inode, size and time of each."""
    found = []
    for name in (CONFIG, WEIGHTS, PACKED):
        with suppress(OSError):  # it is not there, or has gone this instant
            status = (folder / name).stat()
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)


@dataclass(frozen=True)
class Keys:
    """Where a file keeps one layer type: one key of each tensor (packed), or one for each of the L blocks (saved)."""

    modules: tuple[str, ...]
    a: str
    b: str
    index: str | list[str]
    scale: str | list[str] | None

    def pools(self, tensors: dict[str, Tensor]) -> Pools:
        index, scale = stacked(tensors, self.index, 1), None  # L of (2, r, l) -> (2, L, r, l)
        if self.scale is not None:
            scale = stacked(tensors, self.scale, 0)  # L of (r,) -> (L, r)
        ones = scale is None or bool((scale == 1).all())
        return Pools(self.modules, tensors[self.a], tensors[self.b], index, None if ones else scale)


def stacked(tensors: dict[str, Tensor], keys: str | list[str], dim: int) -> Tensor:
    return tensors[keys] if isinstance(keys, str) else torch.stack([tensors[key] for key in keys], dim)


def read(folder: Path, max_rank: int | None = None) -> Adapter:
    """Read the MoS adapter in `folder`, from its packed form if that is there and current.

    max_rank: the largest r and e that the server takes; None: any

    Raises:
        FileNotFoundError: `folder` holds no adapter.
        AdapterError: the adapter is broken, truncated, of another kind, or too large.
    """
    try:
        return parsed(folder, max_rank)
    except (AdapterError, FileNotFoundError, NotADirectoryError):
        raise
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:  # whatever a file may hold
        raise AdapterError(folder, f"cannot be read: {reprlib.repr(str(error))}.") from error


def parsed(folder: Path, max_rank: int | None) -> Adapter:
    config = read_config(folder)
    alpha = checked_alpha(folder, config)
    weights, packed = folder / WEIGHTS, folder / PACKED
    if not weights.exists() and not packed.exists():
        raise AdapterError(folder, f"holds no {WEIGHTS}: MoS adapters are loaded from safetensors only.")
    source = packed if is_current(packed, weights) else weights
    if not source.is_file():
        raise AdapterError(folder, f"has a folder, a pipe or a device in place of {source.name}.")
    try:
        with safe_open(source, framework="pt") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  it is no dict
            shapes = {key: tuple(each.get_shape()) for key, each in slices.items()}
            odd = next((key for key, each in slices.items() if each.get_dtype() not in TYPES), None)
            metadata = file.metadata() or {}
        if odd:
            raise AdapterError(folder, f"holds '{odd}' in a type that MoS does not save.")
        keys = packed_keys(folder, shapes, metadata) if source is packed else saved_keys(folder, shapes)
        for each in keys:
            check_keys(folder, each, shapes, max_rank)
        # read, not mapped: a trainer that saves again would cut a mapped file off, which kills the process
        tensors = load(source.read_bytes())
    except (SafetensorError, OSError) as error:
        raise AdapterError(folder, f"has a broken or truncated {source.name}: {error}.") from error
    if {key: tuple(tensor.shape) for key, tensor in tensors.items()} != shapes:
        raise AdapterError(folder, f"has a {source.name} that was written while it was read. Ask again.")
    return Adapter(alpha, tuple(checked(folder, each.pools(tensors)) for each in keys))


def checked(folder: Path, pools: Pools) -> Pools:
    check_values(folder, layer_type(pools.modules[0]), pools)
    return pools


def checked_alpha(folder: Path, config: dict[str, Any]) -> float:
    """`alpha` of the settings. Raises AdapterError where they ask for what vLLM cannot serve with a MoS adapter."""
    if not is_mos(config):
        raise AdapterError(folder, f"has peft_type={config.get('peft_type')!r} instead of 'MOS'.")
    for setting in ("modules_to_save", "bias"):
        if config.get(setting) not in (None, [], "none"):
            given = reprlib.repr(config[setting])
            raise AdapterError(folder, f"has {setting}={given}, which vLLM cannot serve with an adapter.")
    alpha = config.get("alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not abs(alpha) <= MAX_ALPHA:
        raise AdapterError(folder, f"has alpha={reprlib.repr(alpha)} in its {CONFIG}, which is no number to scale by.")
    return float(alpha)


def is_current(packed: Path, weights: Path) -> bool:
    """Whether the packed form was made from these weights, or stands alone."""
    if not packed.is_file() or not weights.exists():
        return packed.is_file()
    try:
        with safe_open(packed, framework="pt") as file:
            return (file.metadata() or {}).get("source") == source_stamp(weights)
    except (SafetensorError, OSError):
        return False  # the weights tell


def source_stamp(weights: Path) -> str:
    """Size, time and some content of the file that was packed: a copy may have been given the time of another."""
    status, found = weights.stat(), hashlib.blake2b(digest_size=8)
    with weights.open("rb") as file:
        for place in range(SAMPLES):
            found.update(os.pread(file.fileno(), SAMPLE, place * status.st_size // SAMPLES))
    return f"{status.st_size}:{status.st_mtime_ns}:{found.hexdigest()}"


def saved_keys(folder: Path, shapes: dict[str, Shape]) -> list[Keys]:
    """The layer types in a file as PEFT saves it: one pair of pools for each, an index and scales for a block.

    Raises:
        AdapterError: a tensor is not of MoS, or one is missing.
    """
    keys: dict[str, dict[str, str]] = {parameter: {} for parameter in PARAMETERS}
    for key in shapes:
        name, _, parameter = key.removeprefix(ROOT).rpartition(".")
        if parameter not in keys or not name:
            raise AdapterError(folder, f"holds '{key}', which is no tensor of MoS.")
        if name in keys[parameter]:
            raise AdapterError(folder, f"holds '{name}.{parameter}' twice, under two names.")
        keys[parameter][name] = key
    pools_a, pools_b = (by_type(folder, keys[parameter]) for parameter in ("mos_A", "mos_B"))
    indices, scales = keys["mos_index"], keys["mos_scale"]
    blocks = defaultdict(list)
    for name in sorted(indices, key=block_numbers):
        blocks[layer_type(name)].append(name)
    if not blocks or not pools_a.keys() == pools_b.keys() == blocks.keys() or scales.keys() != indices.keys():
        raise AdapterError(folder, "lacks pools, indices or scales of some layers: its file is not whole.")
    return [
        Keys(tuple(names), pools_a[kind], pools_b[kind], [indices[n] for n in names], [scales[n] for n in names])
        for kind, names in sorted(blocks.items())
    ]


def by_type(folder: Path, keys: dict[str, str]) -> dict[str, str]:
    """The key of the pool of each layer type. Raises AdapterError for two pools of one type."""
    hosts: dict[str, str] = {}
    for name, key in keys.items():
        if hosts.setdefault(layer_type(name), key) != key:
            raise AdapterError(
                folder, f"has two pools for '{layer_type(name)}', so that its file does not tell which a layer uses."
            )
    return hosts


def packed_keys(folder: Path, shapes: dict[str, Shape], metadata: dict[str, str]) -> list[Keys]:
    """The layer types in a packed file. Raises AdapterError if this is not the file that `mos_vllm.pack` writes."""
    if metadata.get("format") != PACKED_FORMAT:
        raise AdapterError(folder, f"has a {PACKED} whose format is not '{PACKED_FORMAT}': pack it again.")
    try:
        modules = [tuple(str(name) for name in names) for names in json.loads(metadata["modules"])]
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(folder, f"has a {PACKED} that does not name its layers: pack it again.") from error
    kinds = [{layer_type(name) for name in names} for names in modules]
    ordered = all(list(names) == sorted(set(names), key=block_numbers) for names in modules)
    if not modules or any(len(kind) != 1 for kind in kinds) or len(set.union(*kinds)) < len(kinds) or not ordered:
        raise AdapterError(folder, f"has a {PACKED} whose layers are not in the order of their blocks: pack it again.")
    found = []
    for number, names in enumerate(modules):
        a, b, index, scale = (f"{number}.{part}" for part in ("A", "B", "index", "scale"))
        if not names or not {a, b, index} <= shapes.keys():
            raise AdapterError(folder, f"has a {PACKED} that lacks tensors: pack it again.")
        found.append(Keys(names, a, b, index, scale if scale in shapes else None))
    return found


def check_keys(folder: Path, keys: Keys, shapes: dict[str, Shape], max_rank: int | None) -> None:
    """Check the shapes of one layer type, before any tensor is read.

    Raises:
        AdapterError: the shapes contradict each other, or the rank is above `max_rank`.
    """
    kind = layer_type(keys.modules[0])
    index = stacked_shape(shapes, keys.index, 1)
    if index is None or len(index) != 4 or index[:2] != (2, len(keys.modules)):
        raise AdapterError(folder, f"has indices of '{kind}' that are not all of one shape (2, r, l).")
    if keys.scale is not None and stacked_shape(shapes, keys.scale, 0) != index[1:3]:
        raise AdapterError(folder, f"has scales of '{kind}' that are not of shape ({index[2]},).")
    check_shapes(folder, kind, shapes[keys.a], shapes[keys.b], index, max_rank)


def stacked_shape(shapes: dict[str, Shape], keys: str | list[str], dim: int) -> Shape | None:
    """The shape that `stacked` gives, or None where the blocks differ."""
    if isinstance(keys, str):
        return shapes[keys]
    first = shapes[keys[0]]
    return (*first[:dim], len(keys), *first[dim:]) if all(shapes[key] == first for key in keys) else None
