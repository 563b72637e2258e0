"""The settings of Tied LoRA."""

from dataclasses import dataclass, field

from mos.common.config import LowRankConfig
from mos.registration import add_peft_type


@dataclass
class TiedLoraConfig(LowRankConfig):
    """Tied LoRA: one pair of factors for the query, key and value projections of all blocks.

    Trainable parameters, with w = h + 2 h_kv rows of q, k and v: r (h + w) + L (r + w).
    Raises ValueError for an r that is not a positive integer.
    """

    r: int = field(default=280, metadata={"help": "Rank of the update"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = add_peft_type("TIED_LORA")
        self.require_positive("r")
