"""What a plan warns of: memory, disk and the paper's own case of too little memory."""

import os
from collections.abc import Iterator, Sequence

from scripts.cost import formulas
from scripts.cost.disk import Need, converting_bytes, shortages
from scripts.cost.formulas import GIB
from scripts.cost.gpu import RESERVE_GIB, fits
from scripts.cost.inputs import Inputs, training_memory


def cautions(inputs: Inputs, needs: Sequence[Need]) -> list[str]:
    """One text for each thing that will not work, with what to do about it."""
    return [*_too_small(inputs), *_vera(inputs), *shortages(needs), *_converting(inputs, needs)]


def _too_small(inputs: Inputs) -> Iterator[str]:
    """The methods that do not fit on a GPU."""
    for name in inputs.adapters:
        peak = inputs.memory(name).peak
        for gpu in inputs.gpus:
            if not fits(peak, gpu):
                size = inputs.methods[name].trainer.micro_batch_size
                yield (
                    f"{name} needs {peak / GIB:.1f} GiB to train and does not fit on {gpu.name} ({gpu.memory_gib} GiB "
                    f"less {RESERVE_GIB} reserve): lower trainer.micro_batch_size (now {size})."
                )


def _vera(inputs: Inputs) -> Iterator[str]:
    """VeRA at the rank that matches the budget of LoRA 2, which ran out of memory in the paper (Sec. 4.2)."""
    if not {"vera_r256", "lora_r2"} <= inputs.adapters.keys():
        return
    cfg, budget = inputs.methods["vera_r256"], inputs.adapters["lora_r2"].trainable
    rank = formulas.vera_rank(inputs.model, budget)
    matched = formulas.vera_adapter(inputs.model, rank)
    lines = [f"VeRA on the budget of LoRA 2 ({budget:,} parameters) needs rank {rank:,}; the paper ran out of memory:"]
    for checkpointing in (True, False):
        peak = training_memory(cfg, inputs.model, matched, checkpointing).peak
        verdicts = ", ".join(f"{gpu.name} {'fits' if fits(peak, gpu) else 'does NOT fit'}" for gpu in inputs.gpus)
        lines.append(f"  {'with' if checkpointing else 'without'} checkpointing {peak / GIB:.1f} GiB: {verdicts}")
    yield "\n".join(lines)


def _converting(inputs: Inputs, needs: Sequence[Need]) -> Iterator[str]:
    """A base model that is still to be converted, on a machine with less memory than that takes."""
    needed, there = converting_bytes(inputs.model), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    folder = next((need.folder for need in needs if need.purpose == "converted models" and need.bytes), None)
    if there < needed and folder:
        yield (
            f"Converting {inputs.cfg.model.name} takes about {needed / GIB:.0f} GiB of memory, and this machine has "
            f"{there / GIB:.0f}. Convert it on a larger one, and copy its folders in {folder}."
        )
