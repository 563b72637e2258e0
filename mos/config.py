"""The settings of MoS."""

from dataclasses import dataclass, field

from mos.common.config import LowRankConfig
from mos.registration import add_peft_type


@dataclass
class MosConfig(LowRankConfig):
    """Mixture of Shards: each block assembles its LoRA factors from shards of a pool shared by all blocks.

    Trainable parameters equal those of LoRA at rank `equivalent_rank`; `r` is the rank of each block's update. The
    paper's Table 1 has `shards_per_vector=1, private_rank=0, pair_dissociation=False` and `r=None` (pure sharing), also
    `random_scaling=True`, or a smaller `r` (subset selection); its ablations change one of the three alone.

    Raises ValueError for values out of range or in contradiction; those that depend on the model are checked when the
    adapter is added to one, before any layer is changed.
    """

    r: int | None = field(
        default=8, metadata={"help": "Rank of each block's update; None: every block uses the whole pool, in order"}
    )
    equivalent_rank: int = field(default=2, metadata={"help": "e: as many trainable parameters as LoRA of this rank"})
    shards_per_vector: int = field(
        default=4, metadata={"help": "l: shards per vector; divides the widths of every targeted layer"}
    )
    private_rank: int = field(default=1, metadata={"help": "p: how many of the r vectors no other block shares"})
    pair_dissociation: bool = field(default=True, metadata={"help": "Draw the shards of A and of B independently"})
    index_seed: int = field(
        default=0, metadata={"help": "Seed of the frozen choice of shards; a saved adapter carries its own choice"}
    )
    random_scaling: bool = field(default=False, metadata={"help": "Scale each vector pair by a frozen normal number"})
    scale_mean: float = field(default=0.0, metadata={"help": "Mean of the random scales"})
    scale_std: float = field(default=1.0, metadata={"help": "Standard deviation of the random scales"})
    target_parameters: list[str] | None = field(
        default=None,
        metadata={"help": "Name endings of parameters to adapt, such as mlp.experts.down_proj; experts are blocks"},
    )
    fan_in_fan_out: bool = field(
        default=False, metadata={"help": "Accepted as for LoRA; the layout is read off the layer's class"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = add_peft_type("MOS")
        self.require_positive("equivalent_rank", "shards_per_vector", *(["r"] if self.r is not None else []))
        e, p = self.equivalent_rank, self.private_rank
        if not 0 <= p <= e:
            raise ValueError(f"private_rank={p} must be in [0, equivalent_rank={e}].")
        if isinstance(self.target_parameters, str):
            raise ValueError(f"target_parameters={self.target_parameters!r} must be a list of names.")
        self.check_parameters()
        if self.scale_std < 0:
            raise ValueError(f"scale_std={self.scale_std} must not be negative.")
        if self.r is None and p:
            raise ValueError(f"r=None shares the whole pool with every block: use private_rank=0 instead of {p}.")
        if self.r is not None and self.r < p:
            raise ValueError(f"r={self.r} must be at least private_rank={p}, whose vectors are all used.")
        if self.r is not None and p == e != self.r:
            raise ValueError(
                f"private_rank={p} equals equivalent_rank, which leaves no public shard: r={self.r} must be {e} too "
                "(MoS is LoRA then). Set r, or lower private_rank."
            )

    def check_parameters(self) -> None:
        """Raises ValueError if there are `target_parameters` that the other settings cannot go with."""
        if self.target_parameters and self.dropout:
            raise ValueError(
                f"dropout={self.dropout} cannot act on target_parameters={sorted(self.target_parameters)}: the update "
                "is added to the weights. Set dropout=0, or name target_modules without them."
            )
