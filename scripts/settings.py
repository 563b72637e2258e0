"""The settings at the top level of the config: type, range and choices of each, checked before a command begins."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from omegaconf import DictConfig, OmegaConf
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

Value = TypeVar("Value")
Model = TypeVar("Model", bound=BaseModel)


def _distinct(values: list[Value]) -> list[Value]:
    if repeated := [value for position, value in enumerate(values) if value in values[:position]]:
        raise ValueError(f"{repeated[0]} is given twice")
    return values


def _own_folder(profile: str) -> str:
    if profile in ("printed", "published") or not re.fullmatch(r"\w[\w.+-]*", profile):
        raise ValueError(
            "it names a folder of results; use letters, digits, _ - + . and no name that is taken"
        )
    return profile


Name = Annotated[str, Field(min_length=1)]
Names = Annotated[list[Name], Field(min_length=1), AfterValidator(_distinct)]
Seeds = Annotated[list[NonNegativeInt], Field(min_length=1), AfterValidator(_distinct)]


class Wandb(BaseModel):
    """`wandb.*`: where runs are logged."""

    model_config = ConfigDict(strict=True, extra="forbid")
    project: Name
    group: Name


class Settings(BaseModel):
    """The keys of `configs/config.yaml` that are no config group; `configs/config.yaml` says what each is."""

    model_config = ConfigDict(strict=True, extra="ignore")  # the groups have schemas of their own
    profile: Annotated[str, AfterValidator(_own_folder)]
    models: dict[str, Name]
    seed: NonNegativeInt
    data: Name | None = Field(examples=["data=path/to/data"])
    local_model: Name | None
    limit: PositiveInt | None = Field(examples=["limit=40"])
    runs: Annotated[list[Name], AfterValidator(_distinct)] = Field(examples=["runs=[runs/smol/...]"])
    methods: Names | None = Field(examples=["methods=[lora_r2,mos_r8]"])
    seeds: Seeds = Field(examples=["seeds=[0,1]"])
    candidates: PositiveInt | None
    dry: bool
    gpus_per_run: Literal[0, 1]
    preflight: Literal["none", "data", "engine"]
    workers: PositiveInt
    gpus: Names = Field(examples=["gpus=[a100_40g,mine:24:165]"])
    launcher: Name | None
    runs_dir: Name
    cache_dir: Name
    results_dir: Name
    wandb: Wandb


def check(cfg: DictConfig) -> None:
    """Raise ValueError, in one sentence, for a setting at the top level of the wrong type, range or choice."""
    values: Any = OmegaConf.to_container(cfg, resolve=False)  # the groups may refer to what this machine lacks
    own = {key: cfg[key] for key in Settings.model_fields if key in values}
    settings = checked(Settings, {key: _plain(value) for key, value in own.items()})
    if settings.data not in (None, "generated") and not Path(str(settings.data)).is_dir():
        raise ValueError(
            f"data={settings.data} is no folder; give the folder that holds train/ and eval/ (docs/data.md)."
        )


def checked(model: type[Model], values: Mapping[str, Any], prefix: str = "") -> Model:
    """`values` as `model`. Raises ValueError naming the first wrong setting, its value, and what is wanted.

    prefix: of the setting's name, e.g. `trainer.`
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ValueError(_sentence(model, error, prefix)) from None


def _sentence(model: type[BaseModel], error: ValidationError, prefix: str) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"] if isinstance(part, str))
    top = str(first["loc"][0])
    field = model.model_fields.get(top)
    example = f" E.g. {field.examples[0]}." if field and field.examples else ""
    if first["type"] == "missing":
        return f"{prefix}{name} is not set."
    if first["type"] == "extra_forbidden":
        return f"Unknown setting {prefix}{name}; there are {', '.join(model.model_fields)}."
    wanted = first["msg"].removeprefix("Value error, ")
    return f"{prefix}{name}={_shown(first['input'])} is refused: {wanted[0].lower()}{wanted[1:]}.{example}"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
