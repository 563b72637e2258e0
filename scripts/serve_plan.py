"""How many adapters a node serves: MoS as MoS, exported, and LoRA, from counted shapes.

python -m scripts.serve_plan llama2_70b --gpu h200:8 -r 16 -e 2
"""

import argparse
import sys
import tempfile
from pathlib import Path

from omegaconf import OmegaConf

from scripts.config import CONFIGS, choices
from scripts.cost.serving import Gpu, Plan, indices, layer_types, plan

USERS = 10_000
DESCRIPTION = "How many adapters a node serves."
QUALITY = """\
Equal quality by the paper's Table 2 (LLaMA2-7B, average): LoRA 64 has 37.53, MoS 16/32 with e=8 has 37.63.
MoS 4/8 with e=2 has 36.39, between LoRA 2 (34.98) and LoRA 8 (36.89)."""


def main(arguments: list[str] | None = None) -> None:
    """Print the plan; a ValueError becomes one line and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.serve_plan", description="How many adapters a node serves."
    )
    parser.add_argument("model", help="a name from configs/model")
    parser.add_argument("--gpu", default="h200:8", help="a name from configs/gpu, and how many are in a node: h200:8")
    parser.add_argument("-r", type=int, default=16, help="active rank; slots are built to it")
    parser.add_argument("-e", type=int, default=2, help="equivalent rank")
    parser.add_argument("--shards", type=int, default=4, help="shards per vector")
    parser.add_argument("--max-loras", type=int, default=32, help="slots: adapters in one batch")
    parser.add_argument("--kv-gib", type=float, default=10.0, help="KV cache on each GPU")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw memory against the number of adapters")
    given = parser.parse_args(arguments)
    try:
        print(planned(given))
    except ValueError as error:
        sys.exit(f"error: {error}")


def planned(given: argparse.Namespace) -> str:
    """The text of the plan. Raises ValueError for an unknown name, or a model that does not fit."""
    from scripts.cell.shapes import meta_model  # transformers: only once the names are known to be right

    gpu = parse_gpu(given.gpu)
    if given.model not in choices("model"):
        raise ValueError(f"Unknown model '{given.model}'; choose one of {', '.join(choices('model'))}.")
    if min(given.r, given.e, given.shards, given.max_loras) < 1:
        raise ValueError("r, e, shards and max-loras must be at least 1.")
    network = meta_model(OmegaConf.load(CONFIGS / "model" / f"{given.model}.yaml"))  # type: ignore[arg-type]
    options = {"shards": given.shards, "max_loras": given.max_loras, "kv_cache": given.kv_gib * 2**30}
    found = plan(network, gpu, r=given.r, e=given.e, **options)
    if given.plot:
        draw(given.model, found, given.plot)
    shared = indices(layer_types(network), given.r, given.shards)
    return f"{render(given.model, found)}\nIndices on the host, once for all adapters of a seed: {shared / 1e6:.1f} MB."


def parse_gpu(text: str) -> Gpu:
    """`name` or `name:count`, a name from configs/gpu. Raises ValueError otherwise."""
    name, _, count = text.partition(":")
    if name not in choices("gpu") or not (count or "1").isdecimal() or int(count or 1) < 1:
        raise ValueError(f"GPU '{text}' is not name:count, e.g. h200:8, with a name of {', '.join(choices('gpu'))}.")
    spec = OmegaConf.load(CONFIGS / "gpu" / f"{name}.yaml")
    return Gpu(spec.name, spec.memory_gib * 2**30, spec.memory_tb_s * 1e12, spec.host_gb_s * 1e9, int(count or 1))


def render(model: str, found: Plan) -> str:
    """A line on memory, a table with one row for each way of serving, and what the paper says of quality."""
    gpu = found.gpu
    sizes = ", ".join(
        f"{name} {size / 1e9:.1f} GB"
        for name, size in (
            ("base", found.base), ("slots", found.slots), ("KV cache", found.kv_cache), ("adapters", found.store)
        )
    )  # fmt: skip
    head = (
        f"{model} in bfloat16 on {gpu.count} x {gpu.name}: {found.groups} cop{'y' if found.groups == 1 else 'ies'} on "
        f"{found.tp} GPU(s) each\nOn each GPU of {gpu.memory / 1e9:.1f} GB, 0.9 of it in use: {sizes}\n"
    )
    columns = "adapter", "MB a GPU", "a copy", "a node", "GPUs for 10,000", "TB on hosts", "from GPU", "from host"
    lines = [columns] + [
        (
            row.label,
            f"{row.held / 1e6:.1f}",
            f"{row.per_group:,}",
            f"{row.per_group * found.groups:,}",
            f"{found.gpus_for(USERS, row):,}" if row.per_group else "-",
            f"{USERS * row.on_host / 1e12:.2f}",
            f"{row.warm * 1e3:.2f} ms" if row.warm else "-",
            f"{row.cold * 1e3:.2f} ms",
        )
        for row in found.rows
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    table = "\n".join(line.rstrip() for line in padded)
    return f"{head}\n{table}\n\n{QUALITY}"


def draw(model: str, found: Plan, path: Path) -> None:
    """Memory of the hosts against the number of adapters, one line for each way of serving; .svg, .png or .pdf."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    counts = [1, USERS]
    for row, style in zip(found.rows, ("-", "--", ":", "-."), strict=True):
        axes.loglog(counts, [count * row.on_host / 1e9 for count in counts], style, label=row.label)
    axes.set(xlabel="adapters", ylabel="memory (GB, bfloat16)", title=f"Adapters of {model} held by a server")
    axes.grid(alpha=0.3)
    axes.legend()
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        complete = Path(temporary) / path.name
        figure.savefig(complete, metadata={"Date": None} if path.suffix == ".svg" else None)
        complete.replace(path)


if __name__ == "__main__":
    main()
