"""What the measured steps of two blocks say of LLaMA2: the plan's numbers, corrected by what was measured."""

from collections.abc import Sequence

import torch
from transformers import LlamaConfig

from scripts.check.steps import GIB, LLAMA2_7B, LLAMA2_13B, WIDE, Step, plan
from scripts.check.walk import LeftOut

MODELS = {"LLaMA2-7B": LLAMA2_7B, "LLaMA2-13B": LLAMA2_13B}


def extrapolated(measured: Sequence[Step]) -> str:
    """Seconds and memory of a step of each model with checkpointing, as the profile `paper` trains.

    Raises ValueError if one needs more memory than this GPU has.
    """
    checkpointed = [step for step in measured if step.checkpointing]
    if not checkpointed:
        raise LeftOut("no training step was measured")
    there = torch.cuda.get_device_properties(0).total_memory / GIB
    lines = []
    for model, shapes in MODELS.items():
        taken = {step.method: scaled(step, shapes) for step in checkpointed}
        lines += [f"{model} {method} {seconds:.2f} s, {memory:.1f} GiB" for method, (seconds, memory) in taken.items()]
        if too_large := [method for method, (_, memory) in taken.items() if memory > there]:
            raise ValueError(
                f"{model} with {', '.join(too_large)} needs more than the {there:.1f} GiB of this GPU; lower "
                f"trainer.micro_batch_size ({'; '.join(lines)})."
            )
    return "; ".join(lines)


def scaled(step: Step, shapes: LlamaConfig) -> tuple[float, float]:
    """Seconds and GiB of the step on a Llama of `shapes`: the plan's, times measured over planned on two blocks."""
    bytes_there, flops_there = plan(WIDE, step)
    bytes_wanted, flops_wanted = plan(shapes, step)
    return step.seconds * flops_wanted / flops_there, step.memory * bytes_wanted / bytes_there / GIB
