"""The plan of a server as text and as a picture, and the GPU that it is for."""

import tempfile
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from scripts.config import CONFIGS, choices
from scripts.cost.gpu import SHARE_FOR_VLLM, is_positive
from scripts.cost.serving import Gpu, Plan

RATES = ("memory_tb_s", "host_gb_s")  # of a GPU's memory, and from the host's
USERS = 10_000
QUALITY = """\
Equal quality by the paper's Table 2 (LLaMA2-7B, average): LoRA 64 has 37.53, MoS 16/32 with e=8 has 37.63.
MoS 4/8 with e=2 has 36.39, between LoRA 2 (34.98) and LoRA 8 (36.89)."""


def parse_gpu(text: str) -> Gpu:
    """`name` or `name:count`, a name from configs/gpu. Raises ValueError otherwise, and for a file without RATES."""
    name, _, count = text.partition(":")
    if name not in choices("gpu") or not (count or "1").isdecimal() or int(count or 1) < 1:
        raise ValueError(f"GPU '{text}' is not name:count, e.g. h200:8, with a name of {', '.join(choices('gpu'))}.")
    spec: Any = OmegaConf.load(CONFIGS / "gpu" / f"{name}.yaml")
    if missing := [key for key in RATES if not is_positive(spec.get(key))]:
        raise ValueError(
            f"configs/gpu/{name}.yaml has no {' and no '.join(missing)} above 0: add the rate of its memory in TB/s "
            "(memory_tb_s) and from the host in GB/s (host_gb_s), as in h200.yaml."
        )
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
        f"{found.tp} GPU(s) each\nOn each GPU of {gpu.memory / 1e9:.1f} GB, {SHARE_FOR_VLLM:g} of it in use: {sizes}\n"
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
    """Memory of the hosts against the number of adapters, one line for each way of serving; .svg, .png or .pdf.

    The same plan gives the same SVG file, byte for byte.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    counts = [1, USERS]
    for row, style in zip(found.rows, ("-", "--", ":", "-."), strict=True):
        axes.loglog(counts, [count * row.on_host / 1e9 for count in counts], style, label=row.label)
    axes.set(xlabel="adapters", ylabel="memory (GB, bfloat16)", title=f"Adapters of {model} held by a server")
    axes.grid(alpha=0.3)
    axes.legend()
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary, rc_context({"svg.hashsalt": model}):
        complete = Path(temporary) / path.name
        figure.savefig(complete, metadata={"Date": None} if path.suffix == ".svg" else None)
        complete.replace(path)
