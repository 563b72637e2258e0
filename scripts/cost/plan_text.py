"""The plan as text."""

from collections.abc import Sequence

import pandas as pd
from omegaconf import DictConfig

from scripts.cost import formulas as costs
from scripts.cost.formulas import GIB, Architecture
from scripts.cost.gpu import Gpu
from scripts.cost.plan import Plan


def render(cfg: DictConfig, found: Plan) -> str:
    """The plan as text."""
    pd.options.display.width = 250
    pd.options.display.max_columns = 40
    gpus, model = [Gpu.of(str(text)) for text in cfg.gpus], Architecture.of(cfg.model.architecture)
    parts = [
        f"{cfg.table.title}: plan for profile {cfg.profile}, {cfg.model.name}",
        "Training memory, GiB (peak: what has to fit at once)",
        found.memory.to_string(index=False, float_format="{:.2f}".format),
        f"Evaluation on the 16-bit model ({costs.evaluation_weights(model, None) / GIB:.1f} GiB)",
        found.evaluation.to_string(index=False, float_format="{:.2f}".format),
        "Cells",
        found.cells.to_string(index=False, float_format="{:.2f}".format),
        _totals(found.cells, gpus),
        "Assumed shares of the peak rate: "
        + "; ".join(f"{g.name} training {g.training}, prefill {g.prefill}, decode {g.decode}" for g in gpus)
        + ". Answers count at full length and prompts without prefix cache.",
        "Lengths: "
        + ("of the data" if cfg.data else "published sizes, every training example as long as allowed")
        + ".",
        *(f"WARNING: {warning}" for warning in found.warnings),
    ]
    return "\n\n".join(parts)


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
