"""The plan as text."""

from collections.abc import Sequence

import pandas as pd
from omegaconf import DictConfig

from scripts.cost.gpu import Gpu
from scripts.cost.plan import Plan


def render(cfg: DictConfig, found: Plan) -> str:
    """The plan as text."""
    gpus = Gpu.all(cfg.gpus)
    lengths = "of the data" if cfg.data else "published sizes, every training example as long as allowed"
    parts = [
        f"{cfg.table.title}: plan for profile {cfg.profile}, {cfg.model.name}",
        "Training memory, GiB (peak: what has to fit at once)",
        _table(found.memory),
        f"Evaluation on the 16-bit model ({found.weights:.1f} GiB)",
        _table(found.evaluation),
        "Cells",
        _table(found.cells),
        _totals(found.cells, gpus),
        f"Disk still needed, {found.disk.GiB.sum():.1f} GiB in all",
        _table(found.disk),
        "Shares of the peak rate, assumed unless marked: " + "; ".join(gpu.shares() for gpu in gpus) + ".",
        "Answers count at full length, and prompts without prefix cache.",
        f"Lengths: {lengths}.",
        *(f"WARNING: {caution}" for caution in found.cautions),
    ]
    return "\n\n".join(parts)


def _table(frame: pd.DataFrame) -> str:
    return frame.to_string(index=False, float_format="{:.2f}".format, line_width=250)


def _totals(cells: pd.DataFrame, gpus: Sequence[Gpu]) -> str:
    lines = []
    for gpu in gpus:
        training, evaluation = f"{gpu.name} training h", f"{gpu.name} evaluation h"
        left = cells.loc[cells.state == "missing", training].sum()
        hours = cells[training].sum() + cells[evaluation].sum()
        lines.append(
            f"Total on one {gpu.name}: {len(cells)} cells, {cells[training].sum():.0f} h of training "
            f"({left:.0f} h still missing) and {cells[evaluation].sum():.0f} h of evaluation, {hours / 24:.1f} GPU-days"
        )
    return "\n".join(lines)
