"""Write the quick-reading form of adapter folders: one tensor of each kind for all blocks of a layer type.

python -m mos_vllm.pack users/*     a file as PEFT saves it holds some 14 small tensors for each block
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from mos_vllm.adapter import Adapter, AdapterError
from mos_vllm.reading import PACKED, PACKED_FORMAT, WEIGHTS, is_current, read, source_stamp


def pack(folder: Path) -> bool:
    """Write the packed form beside the adapter's own file; False if it is there and current.

    The packed form names the size and time of the file that it was made from, and is left aside once they change.

    Raises:
        FileNotFoundError, AdapterError: as `mos_vllm.reading.read`.
    """
    weights, packed = folder / WEIGHTS, folder / PACKED
    if is_current(packed, weights):
        return False
    source = source_stamp(weights) if weights.exists() else ""
    adapter = read(folder)
    modules = json.dumps([pools.modules for pools in adapter.pools])
    with tempfile.TemporaryDirectory(dir=folder, prefix=".packing-") as temporary:
        complete = Path(temporary) / PACKED
        save_file(tensors(adapter), complete, metadata={"format": PACKED_FORMAT, "modules": modules, "source": source})
        complete.replace(packed)
    return True


def tensors(adapter: Adapter) -> dict[str, Tensor]:
    """The content of the packed file, by the number of the layer type."""
    found: dict[str, Tensor] = {}
    for number, pools in enumerate(adapter.pools):
        parts = {"A": pools.a, "B": pools.b, "index": pools.index, "scale": pools.scale}
        found |= {f"{number}.{part}": tensor.contiguous() for part, tensor in parts.items() if tensor is not None}
    return found


def main(arguments: list[str] | None = None) -> int:
    """Pack each folder; one line for each, and 1 if one could not be packed."""
    parser = argparse.ArgumentParser(
        prog="python -m mos_vllm.pack", description="Write the quick-reading form of adapters."
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="the folder of a saved MoS adapter")
    failed = False
    for folder in parser.parse_args(arguments).folders:
        try:
            print(f"{folder}: {'packed' if pack(folder) else 'was packed before'}")
        except FileNotFoundError:
            failed = True
            print(f"{folder} holds no adapter_config.json. Name the folder of a saved adapter.", file=sys.stderr)
        except (AdapterError, OSError) as error:
            failed = True
            print(error, file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
