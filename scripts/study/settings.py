"""What the yaml of a study may say: keys, types and ranges."""

import re
from collections.abc import Sequence
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from scripts.settings import Name, Names, Seeds, checked

# The keys that the command and its runs read, and of others the reason why not, with the key that is meant.
READ = (
    "capacity",
    "model",
    "local_model",
    "profile",
    "runs_dir",
    "cache_dir",
    "results_dir",
    "workers",
    "dry",
    "hydra",
)
MEANT = {
    **dict.fromkeys(("method", "methods"), "each run has its own; use capacity.rows"),
    **dict.fromkeys(("seed", "seeds"), "each run has its own; use capacity.seeds"),
    **dict.fromkeys(("dataset", "datasets", "data"), "what is learned are facts; use capacity.facts"),
    "trainer": "use capacity.optimizer, and `rate` in capacity.rows",
    "rates": "each row has its own; use `rate` in capacity.rows",
    "models": "a study has one; use model",
    "launcher": "runs are trained on this machine; use workers",
}


def refuse(overrides: Sequence[str]) -> None:
    """Raise ValueError for an override that would have no effect, or that would pass another study off as a known one.

    overrides: of the command line
    """
    keys = [re.split("[=@]", override.lstrip("+~"))[0] for override in overrides]
    for key, override in zip(keys, overrides, strict=True):
        group = re.split("[./]", key)[0]
        if group not in READ:
            reason = MEANT.get(group, f"a study reads {', '.join(READ)} alone")
            raise ValueError(f"{override} would have no effect: {reason}.")
        if group == "capacity" != key and "capacity.name" not in keys:
            raise ValueError(f"{override} makes another study; give it a name too, e.g. capacity.name=mine.")


class FactsSettings(BaseModel):
    """`capacity.facts`: how many facts, and which token ids they are made of."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    count: PositiveInt
    first_token: int = Field(ge=0)
    keys: PositiveInt
    values: int = Field(ge=2)


class OptimizerSettings(BaseModel):
    """`capacity.optimizer`: AdamW without weight decay, its rate warmed up and then lowered to 0 in a line."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    steps: PositiveInt
    batch_size: PositiveInt
    warmup_ratio: float = Field(ge=0, lt=1)
    max_grad_norm: PositiveFloat


class RowSettings(BaseModel):
    """An entry of `capacity.rows`: a method of `configs/method`, changed by overrides.

    rate:  the learning rate that the search starts from, or the only one
    rank:  of a LoRA that is a point of the curve over ranks
    curve: the line of the figure that it is on; the others are points
    last:  trained after the doubled runs
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    label: Name
    method: Name
    overrides: list[str] = []
    rate: PositiveFloat
    rank: PositiveInt | None = None
    curve: Name | None = None
    last: bool = False


class ClaimSettings(BaseModel):
    """An entry of `capacity.claims`: the paper says that `row` stores more than `than`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    text: Name
    row: Name
    than: Name


class StudySettings(BaseModel):
    """The section `capacity`; `configs/capacity/full.yaml` says what each setting is."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]  # of its files
    targets: Names | Name
    facts: FactsSettings
    optimizer: OptimizerSettings
    seeds: Annotated[Seeds, Field(min_length=2)]
    search_seed: int | None = Field(ge=0)
    rate_factor: float = Field(gt=1)
    rows: Annotated[list[RowSettings], Field(min_length=1)]
    doubled: list[Name]
    claims: list[ClaimSettings]
    parity: list[Name]

    @classmethod
    def of(cls, section: DictConfig) -> "StudySettings":
        """Raises ValueError naming the setting, its value and what is wanted."""
        values: Any = OmegaConf.to_container(section, resolve=True)
        study = checked(cls, values, prefix="capacity.")
        study.check_names()
        study.check_overrides()
        if study.search_seed in study.seeds:
            raise ValueError(
                f"capacity.search_seed={study.search_seed} is one of capacity.seeds, so rates would be chosen on a "
                "reported seed; give it another number."
            )
        return study

    def check_names(self) -> None:
        """Raise ValueError for a row that is there twice, or named and not there, and for a curve of one point."""
        labels = [row.label for row in self.rows]
        if repeated := [label for i, label in enumerate(labels) if label in labels[:i]]:
            raise ValueError(f"capacity.rows names {repeated[0]} twice; give each row a label of its own.")
        named = [*self.doubled, *self.parity, *(label for c in self.claims for label in (c.row, c.than))]
        if unknown := [label for label in named if label not in labels]:
            raise ValueError(f"capacity.rows has no row {unknown[0]}; there are {', '.join(labels)}.")
        if self.parity and len(self.ranks) < 2:
            raise ValueError("capacity.parity needs a curve: give at least two LoRA rows of capacity.rows their rank.")

    def check_overrides(self) -> None:
        """Raise ValueError for an override of a row that says nothing of its method: the rest is the same for all."""
        for row in self.rows:
            for override in row.overrides:
                if not override.lstrip("+~").startswith("method."):
                    raise ValueError(
                        f"The row '{row.label}' of capacity.rows is refused: its override {override} does not begin "
                        "with `method.`."
                    )

    def row(self, label: str) -> RowSettings:
        return next(row for row in self.rows if row.label == label)

    @property
    def ranks(self) -> list[RowSettings]:
        """The LoRA rows of the curve over ranks, from the smallest."""
        return sorted((row for row in self.rows if row.rank), key=lambda row: row.rank or 0)
