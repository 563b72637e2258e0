"""The section `trainer` of the config, typed and checked."""

from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from omegaconf import DictConfig, OmegaConf
from transformers.trainer_utils import SchedulerType

from scripts.cell.base_model import compute_dtype


@dataclass(frozen=True)
class TrainerSettings:
    """The section `trainer` of the config, typed and checked; `configs/trainer/default.yaml` says what each is."""

    max_steps: int
    batch_size: int
    micro_batch_size: int
    max_length: int
    learning_rate: float
    scheduler: str
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    group_by_length: bool
    gradient_checkpointing: bool
    validation_size: int
    eval_steps: int
    save_steps: int
    logging_steps: int
    compute_dtype: str
    adapter_dtype: str
    quantization: dict[str, Any]

    @classmethod
    def of(cls, trainer: DictConfig) -> "TrainerSettings":
        """Raises ValueError (or OmegaConf's errors, of a wrong type or name) naming the setting and its value."""
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), trainer))
        assert isinstance(settings, cls)
        settings._check(trainer)
        return settings

    def _check(self, trainer: DictConfig) -> None:
        for name in ("max_steps", "batch_size", "micro_batch_size", "max_length", "eval_steps", "save_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name}={getattr(self, name)} must be at least 1.")
        if self.batch_size % (self.micro_batch_size * processes()):
            raise ValueError(
                f"trainer.batch_size={self.batch_size} is not a multiple of "
                f"trainer.micro_batch_size={self.micro_batch_size}"
                + (f" on each of {processes()} processes; lower the second." if processes() > 1 else ".")
            )
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"trainer.warmup_ratio={self.warmup_ratio} must be at least 0 and below 1.")
        if self.adapter_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"trainer.adapter_dtype='{self.adapter_dtype}' is not supported; use float32 or bfloat16.")
        SchedulerType(self.scheduler)  # its error lists the known ones
        compute_dtype(trainer)


def processes() -> int:
    """How many processes train this cell together: more than one under `accelerate launch`."""
    return PartialState().num_processes
