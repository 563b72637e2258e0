"""Operations of a training step, and the bytes that they read and write: `python -m scripts.measure.operations`.

Counted on a CPU, on a random Llama with an eighth of LLaMA2-7B's widths and an eighth of the paper's 8,192 tokens, so
that weights and activations have the shares that they have there.
"""

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from peft import get_peft_model
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig

from scripts.cell.prepared import prepared
from scripts.check import steps

EIGHTH = LlamaConfig(
    vocab_size=4000, hidden_size=512, intermediate_size=1376, num_hidden_layers=2, num_attention_heads=4
)
BATCH, LENGTH = 16, 64
SETTINGS = {  # name -> checkpointing, trainer settings
    "the paper's": (True, {}),
    "not checkpointed": (False, {}),
    "not checkpointed, upcast=false": (False, {"upcast": False}),
    "not checkpointed, upcast=false, dequantize_once=true": (False, {"upcast": False, "dequantize_once": True}),
}
VIEWS = (  # they move nothing
    "view", "_unsafe_view", "t", "transpose", "expand", "slice", "select", "unsqueeze", "squeeze", "alias", "detach",
)  # fmt: skip


class Count(TorchDispatchMode):
    """Counts what is dispatched while it is active; views move nothing and are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ not in VIEWS:
            self.operations += 1
            self.bytes += sum(_bytes(leaf) for leaf in tree_leaves((args, kwargs, result)))
        return result


def count(step: steps.Step, checkpointing: bool, trainer: DictConfig) -> Count:
    """The second step of a training, which makes nothing for the first time."""
    model: Any = get_peft_model(prepared(steps.random_base(EIGHTH, "cpu"), trainer), step.config).train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.randint(0, EIGHTH.vocab_size, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    _forward_and_backward(model, ids)
    with Count() as counted:
        _forward_and_backward(model, ids)
    return counted


def _forward_and_backward(model: Any, ids: torch.Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits  # (b, t, V)
    cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()).backward()


def _bytes(leaf: Any) -> int:
    return leaf.numel() * leaf.element_size() if isinstance(leaf, torch.Tensor) else 0


def main() -> None:
    defaults = {"upcast": True, "dequantize_once": False, "compute_dtype": "bfloat16"}
    print("| method | settings | operations | GB read and written |\n| --- | --- | --- | --- |")
    for step in steps.steps():
        if step.checkpointing or step.method.startswith("VeRA"):
            continue
        for name, (checkpointing, changed) in SETTINGS.items():
            counted = count(step, checkpointing, OmegaConf.create(defaults | changed))
            print(f"| {step.method} | {name} | {counted.operations} | {counted.bytes / 1e9:.2f} |", flush=True)


if __name__ == "__main__":
    main()
