"""Type, range and choices of the settings, checked before a command begins."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from omegaconf import DictConfig, OmegaConf
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
)

Value = TypeVar("Value")
Model = TypeVar("Model", bound=BaseModel)


def _distinct(values: list[Value]) -> list[Value]:
    if repeated := [value for position, value in enumerate(values) if value in values[:position]]:
        raise ValueError(f"{repeated[0]} is given twice")
    return values


def _own_folder(profile: str) -> str:
    if profile in ("printed", "published") or not re.fullmatch(r"\w[\w.+-]*", profile):
        raise ValueError("it names a folder of results; use letters, digits, _ - + . and no name that is taken")
    return profile


Name = Annotated[str, Field(min_length=1)]
Names = Annotated[list[Name], Field(min_length=1), AfterValidator(_distinct)]
Seeds = Annotated[list[NonNegativeInt], Field(min_length=1), AfterValidator(_distinct)]


class Wandb(BaseModel):
    """`wandb.*`: where runs are logged."""

    model_config = ConfigDict(strict=True, extra="forbid")
    project: Name
    group: Name


class Sampling(BaseModel):
    """How a benchmark samples answers."""

    model_config = ConfigDict(strict=True, extra="forbid")
    samples: PositiveInt
    temperature: NonNegativeFloat
    top_p: Annotated[float, Field(gt=0, le=1)]
    allow_unprotected: bool


class Evaluation(BaseModel):
    """`evaluation.*`; `configs/evaluation/default.yaml` says what each is. Another key is a benchmark's sampling."""

    model_config = ConfigDict(strict=True, extra="allow")
    __pydantic_extra__: dict[str, Sampling]
    variant: Literal["authors", "tulu"]
    max_new_tokens: PositiveInt
    when: Literal["end", "cell"]


class Engine(BaseModel):
    """`engine.*` of any engine; `configs/engine` says what each is."""

    model_config = ConfigDict(strict=True, extra="allow")
    dtype: Literal["auto", "float32", "bfloat16"]
    max_model_len: PositiveInt
    batch_size: PositiveInt = 1
    max_num_seqs: PositiveInt = 1
    max_loras: PositiveInt = 1
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 1
    cpu_kv_cache_gib: PositiveFloat = 1
    cpu_threads: PositiveInt | None = None


SECTIONS: dict[str, type[BaseModel]] = {"evaluation": Evaluation, "engine": Engine}


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
    open_instruct: Name | None
    metric_scripts: Name | None
    methods: Names | None = Field(examples=["methods=[lora_r2,mos_r8]"])
    datasets: Names | None = Field(examples=["datasets=[code_alpaca]"])
    seeds: Seeds = Field(examples=["seeds=[0,1]"])
    candidates: PositiveInt | None
    rates: Literal["own"] | None
    not_in_average: dict[str, Name] = Field(examples=["+not_in_average={COLUMN:'the reason'}"])
    no_verdicts: Name | None
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
    """Raise ValueError, in one sentence, for a setting of the wrong type, range or choice.

    `trainer` and `table` are checked where they are used, by `scripts.cell.settings` and `scripts.table.schema`.
    """
    values: Any = OmegaConf.to_container(cfg, resolve=False)  # the groups may refer to what this machine lacks
    own = {key: cfg[key] for key in Settings.model_fields if key in values}
    settings = checked(Settings, {key: _plain(value) for key, value in own.items()})
    if settings.data not in (None, "generated") and not Path(str(settings.data)).is_dir():
        raise ValueError(
            f"data={settings.data} is no folder; give the folder that holds train/ and eval/ (docs/data.md)."
        )
    for section, model in SECTIONS.items():
        checked(model, _plain(cfg[section]), prefix=f"{section}.")


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
