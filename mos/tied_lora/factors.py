"""The factors of every layer from the file of a saved Tied LoRA adapter."""

from torch import Tensor

from mos.files import block, by_name, last_name
from mos.registration import Factors
from mos.tied_lora.config import TiedLoraConfig


def tied_lora_factors(config: TiedLoraConfig, state: dict[str, Tensor]) -> Factors:
    """diag(u) A and diag(v) B of every layer: A is the file's only one, B that of its type, u that of its block."""
    [a] = by_name(state, "tied_lora_A").values()
    b = {last_name(name): value for name, value in by_name(state, "tied_lora_B").items()}
    u = {block(name): value for name, value in by_name(state, "tied_lora_u").items()}
    return {
        name: (u[block(name)][:, None] * a, v[:, None] * b[last_name(name)])
        for name, v in by_name(state, "tied_lora_v").items()
    }
