"""What the yaml of a table may say: keys, types and choices."""

from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from scripts.settings import Name, Names, checked


class RowYaml(BaseModel):
    """An entry of `rows`; `scripts.table.grid.Row` says what each key means."""

    model_config = ConfigDict(strict=True, extra="forbid")
    label: Name
    rank: Name | None = Field(examples=['rank: "64"'])  # text, since a row may have several ranks: "4/8"
    methods: Names = Field(examples=["methods: [mos_r64]"])
    against: Name | None = None
    ablation: bool = False


class ClaimYaml(BaseModel):
    """An entry of `claims`; `scripts.table.claims.Claim` says what each key means."""

    model_config = ConfigDict(strict=True, extra="forbid")
    text: Name
    row: list[str] = Field(min_length=2, max_length=2, examples=['row: [MoS, "4/8"]'])
    relation: Literal["higher", "lower", "reaches"]
    than: list[str] = Field(min_length=2, max_length=2, examples=['than: [LoRA, "2"]'])
    margin: dict[str, PositiveFloat] | None = None


class TableYaml(BaseModel):
    """configs/table/*.yaml without its rows and claims, which are checked one by one."""

    model_config = ConfigDict(strict=True, extra="forbid")
    name: Name
    title: Name
    model: Name = Field(examples=["model: 7b"])
    datasets: Names = Field(examples=["datasets: [cot]"])
    columns: Names = Field(examples=["columns: [COLUMN, ...]"])
    notes: list[str] = []
    rows: list[Any] = Field(min_length=1)
    claims: list[Any] = []


def check(table: DictConfig) -> None:
    """Raise ValueError for a key of the wrong name, type or choice, naming it, its value and what is wanted."""
    values: Any = OmegaConf.to_container(table, resolve=True)
    checked(TableYaml, values, "table.")
    parts: tuple[tuple[str, type[BaseModel]], ...] = (("rows", RowYaml), ("claims", ClaimYaml))
    for key, model in parts:
        for number, entry in enumerate(values.get(key, [])):
            if not isinstance(entry, dict):
                raise ValueError(f"table.{key}[{number}]={entry} is no mapping of {', '.join(model.model_fields)}.")
            checked(model, entry, f"table.{key}[{number}].")
