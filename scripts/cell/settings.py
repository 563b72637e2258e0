"""The section `trainer` of the config, typed and checked."""

from typing import Any, Literal

from accelerate import PartialState
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from scripts.settings import checked

# Those of transformers that need no arguments of their own, and that do not look at the validation loss.
Scheduler = Literal[
    "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"
]


class Quantization(BaseModel):
    """`trainer.quantization`: how the frozen base is kept in 4 bits (QLoRA)."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    type: Literal["nf4", "fp4"]
    double_quantization: bool


class TrainerSettings(BaseModel):
    """The section `trainer`; `configs/trainer/default.yaml` says what each setting is."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    max_steps: PositiveInt
    batch_size: PositiveInt
    micro_batch_size: PositiveInt
    max_length: PositiveInt
    learning_rate: PositiveFloat
    scheduler: Scheduler
    warmup_ratio: float = Field(ge=0, lt=1)
    weight_decay: NonNegativeFloat
    max_grad_norm: NonNegativeFloat
    group_by_length: bool
    gradient_checkpointing: bool
    uncheckpointed_tokens: NonNegativeInt | None
    upcast: bool
    dequantize_once: bool
    attention: Literal["fused", "products"]
    fast_dropout: bool
    liger: bool
    validation_size: PositiveInt
    eval_steps: PositiveInt
    save_steps: PositiveInt
    logging_steps: PositiveInt
    compute_dtype: Literal["bfloat16", "float32"]
    adapter_dtype: Literal["float32", "bfloat16"]
    quantization: Quantization

    @classmethod
    def of(cls, trainer: DictConfig) -> "TrainerSettings":
        """Raises ValueError naming the setting, its value and what is wanted."""
        values: Any = OmegaConf.to_container(trainer, resolve=True)
        settings = checked(cls, values, prefix="trainer.")
        share = settings.micro_batch_size * processes()
        if settings.batch_size % share:
            raise ValueError(
                f"trainer.batch_size={settings.batch_size} is not a multiple of "
                f"trainer.micro_batch_size={settings.micro_batch_size}"
                + (f" on each of {processes()} processes; lower the second." if processes() > 1 else ".")
            )
        return settings


def processes() -> int:
    """How many processes train this cell together: more than one under `accelerate launch`."""
    return PartialState().num_processes
