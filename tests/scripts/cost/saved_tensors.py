"""Counts what a block of a 4-bit model keeps for its backward pass, with torch's saved-tensor hooks on this CPU."""

from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from scripts.cell.base_model import in_training_layout
from scripts.cell.shapes import model_config
from tests.scripts.families import model

QUANTIZATION = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
)


def block_bytes(family: str, *, rank: int, targets: object, batch: int, length: int, folder: Path) -> int:
    """Bytes that a third block adds to two: what does not belong to a block cancels out."""
    two, three = (adapted(family, blocks, rank, targets, folder / str(blocks)) for blocks in (2, 3))
    ids = torch.randint(3, 96, (batch, length), generator=torch.Generator().manual_seed(0))
    return saved_bytes(three, ids) - saved_bytes(two, ids)


def adapted(family: str, blocks: int, rank: int, targets: object, folder: Path) -> torch.nn.Module:
    """The 4-bit model with LoRA, as `scripts.cell.training` builds it."""
    network = AutoModelForCausalLM.from_config(model_config(model(family, num_hidden_layers=blocks)))
    network.to(torch.bfloat16).save_pretrained(folder)
    base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=QUANTIZATION, dtype=torch.bfloat16)
    assert any(isinstance(module, Linear4bit) for module in base.modules())
    base = prepare_model_for_kbit_training(in_training_layout(base), use_gradient_checkpointing=False)
    return get_peft_model(base, LoraConfig(r=rank, lora_dropout=0.1, target_modules=targets)).train()


def saved_bytes(network: torch.nn.Module, ids: torch.Tensor) -> int:
    """Bytes of all storages that the forward pass saves, each once, without the model's own."""
    own = {t.untyped_storage().data_ptr() for t in [*network.parameters(), *network.buffers()]}
    own |= {t.untyped_storage().data_ptr() for t in quantization_states(network)}
    kept: dict[int, torch.UntypedStorage] = {}  # the storages themselves, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        network(input_ids=ids)
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own)


def quantization_states(network: torch.nn.Module) -> list[torch.Tensor]:
    """The scales and code books of the 4-bit weights, those of the scales' own quantization included."""
    states = [m.weight.quant_state for m in network.modules() if isinstance(m, Linear4bit)]
    states += [state.state2 for state in states]
    return [t for state in states for t in (state.absmax, state.code, getattr(state, "offset", None)) if t is not None]
