"""How many adapters a node serves: MoS as MoS, exported, and LoRA, from counted shapes.

python -m scripts.serve_plan llama2_70b --gpu h200:8 -r 16 -e 2
"""

import argparse
import sys
from pathlib import Path

from scripts.command import EXPECTED, sentence
from scripts.config import compose
from scripts.cost.serving import indices, layer_types, plan
from scripts.cost.serving_text import draw, parse_gpu, render


def main(arguments: list[str] | None = None) -> None:
    """Print the plan; an expected error becomes one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.serve_plan", description="How many adapters a node serves."
    )
    parser.add_argument("model", help="a name from configs/model")
    parser.add_argument("--gpu", default="h200:8", help="a name from configs/gpu, and how many are in a node: h200:8")
    parser.add_argument("-r", type=int, default=16, help="active rank; slots are built to the larger of it and e")
    parser.add_argument("-e", type=int, default=2, help="equivalent rank")
    parser.add_argument("--shards", type=int, default=4, help="shards per vector")
    parser.add_argument("--max-loras", type=int, default=32, help="slots: adapters in one batch")
    parser.add_argument("--kv-gib", type=float, default=10.0, help="KV cache on each GPU")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw memory against the number of adapters")
    given = parser.parse_args(arguments)
    try:
        print(planned(given))
    except EXPECTED as error:
        sys.exit(f"error: {sentence(error)}")


def planned(given: argparse.Namespace) -> str:
    """The text of the plan. Raises one of EXPECTED for a wrong argument, or a model that does not fit."""
    from scripts.cell.shapes import meta_model  # transformers: only once the names are known to be right

    gpu = parse_gpu(given.gpu)
    if min(given.r, given.e, given.shards, given.max_loras) < 1:
        raise ValueError("r, e, shards and max-loras must be at least 1.")
    if not given.kv_gib >= 0:
        raise ValueError(f"--kv-gib={given.kv_gib:g} must be 0 or more.")
    if given.plot and not given.plot.parent.is_dir():
        raise ValueError(f"--plot={given.plot}: there is no folder '{given.plot.parent}'. Make it first.")
    network = meta_model(compose([f"model={given.model}"]).model)
    options = {"shards": given.shards, "max_loras": given.max_loras, "kv_cache": given.kv_gib * 2**30}
    found = plan(network, gpu, r=given.r, e=given.e, **options)
    if given.plot:
        draw(given.model, found, given.plot)
    shared = found.tp * indices(layer_types(network), max(given.r, given.e), given.shards)
    return f"{render(given.model, found)}\nIndices on the host, once for all adapters of a seed: {shared / 1e6:.1f} MB."


if __name__ == "__main__":
    main()
