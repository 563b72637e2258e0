"""The settings of PRoLoRA."""

from dataclasses import dataclass, field

from mos.common.config import LowRankConfig
from mos.registration import add_peft_type


@dataclass
class ProloraConfig(LowRankConfig):
    """PRoLoRA: one chunk, repeated and rotated, makes up each factor of a layer.

    Trainable parameters of a layer: (r - u) * (ceil(h/m) + ceil(o/n)) + u * (h + o).

    Raises ValueError where the ranks or sharing ratios are out of range.
    """

    r: int = field(default=4, metadata={"help": "Rank of the update, shared and unshared together"})
    unshared_rank: int = field(default=0, metadata={"help": "u: ranks of r that are plain LoRA"})
    sharing_a: int = field(default=2, metadata={"help": "m: rotated copies of the chunk that make up A"})
    sharing_b: int = field(default=2, metadata={"help": "n: likewise for B"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = add_peft_type("PROLORA")
        self.require_positive("r", "sharing_a", "sharing_b")
        if not 0 <= self.unshared_rank < self.r:
            raise ValueError(
                f"r - unshared_rank = {self.r} - {self.unshared_rank} must be at least 1 and at most r: set "
                f"unshared_rank to 0..{self.r - 1}. With every rank unshared the method is plain LoRA."
            )
