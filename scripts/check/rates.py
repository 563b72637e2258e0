"""What the measured steps say of this GPU: a file for `make plan`, and the GPU-days of the paper's tables."""

import re
from collections.abc import Sequence

import pandas as pd
import torch

from data_prep.storage import write_text
from scripts.check.steps import GIB, WIDE, Step, plan
from scripts.config import CONFIGS, choices, compose, model_of_table
from scripts.cost.gpu import Gpu

TABLES = ("table1", "table2", "table3")


def write_rates(measured: Sequence[Step]) -> str:
    """Write `configs/gpu/<this>.yaml` from the timed steps; returns its name.

    The peak rate is that of a known GPU of the same model, else a timed matrix product.
    """
    properties = torch.cuda.get_device_properties(0)
    name = re.sub(r"[^a-z0-9]+", "_", properties.name.lower()).strip("_")
    tflops = known_tflops(properties.name) or product_tflops()
    write_text(
        CONFIGS / "gpu" / f"{name}.yaml",
        "# Written by `make gpu-check` on this GPU; a100_40g.yaml says what the numbers mean.\n"
        f"name: {properties.name}\n"
        f"memory_gib: {properties.total_memory / GIB:.1f}\n"
        f"tflops: {tflops:.0f}\n"
        f"efficiency: {{training: {efficiency(measured, tflops):.3f}}}\n"
        "measured: [training]\n",
    )
    return name


def efficiency(measured: Sequence[Step], tflops: float) -> float:
    """The share of the peak rate that the steps reached, all together; at most 1."""
    flops = sum(plan(WIDE, step)[1] for step in measured)
    return min(1.0, flops / sum(step.seconds for step in measured) / (tflops * 1e12))


def gpu_days(gpu: str) -> float:
    """GPU-days of the three tables of the profile `paper` on a GPU of configs/gpu, by the plan.

    A cell that two tables show is trained and evaluated once.
    """
    cells = pd.concat([_cells(gpu, table) for table in TABLES])
    once = cells.drop_duplicates(["model", "method", "dataset", "seed"])
    hours = [column for column in once if column.startswith(f"{Gpu.of(gpu).name} ")]
    return float(once[hours].to_numpy().sum()) / 24


def known_tflops(name: str) -> float | None:
    """The peak rate of a GPU of configs/gpu of the same model (A100, H100 ...) as the GPU that CUDA calls `name`."""
    words = name.lower().replace("-", " ").split()
    for known in map(Gpu.of, choices("gpu")):
        if known.name.partition("-")[0].lower() in words:
            return known.tflops
    return None


def product_tflops(size: int = 8192, times: int = 20) -> float:
    """The rate of a large bf16 matrix product on this GPU, in TFLOPs: what can be reached, a little below the peak."""
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    a @ a
    start.record()
    for _ in range(times):
        a @ a
    end.record()
    torch.cuda.synchronize()
    return 2 * size**3 * times / (start.elapsed_time(end) / 1000) / 1e12


def _cells(gpu: str, table: str) -> pd.DataFrame:
    """The cells of a table's plan, with its model."""
    from scripts.cost.plan import plan as table_plan

    overrides = ["profile=paper", f"table={table}", f"gpus=[{gpu}]"]
    overrides.append(model := model_of_table(compose(overrides)))
    return table_plan(compose(overrides), overrides).cells.assign(model=model)
