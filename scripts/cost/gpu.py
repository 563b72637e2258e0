"""GPUs: memory, rates, and how long so many operations take on one."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from scripts.config import CONFIGS, choices, unknown
from scripts.cost.formulas import GIB

SHARES = ("training", "prefill", "decode")
ASSUMED = "a100_40g"  # whose shares count where a GPU has none of its own
SHARE_FOR_VLLM = 0.9  # of the GPU's memory, as configs/engine/vllm.yaml has it; vLLM's own default is 0.92
RESERVE_GIB = 1.0  # CUDA context and fragmentation


@dataclass(frozen=True)
class Gpu:
    """A GPU: memory in GiB, peak bf16 TFLOPs, and the shares of the peak that are reached.

    `measured` names the shares that were measured on such a GPU; the others are assumptions.
    """

    name: str
    memory_gib: float
    tflops: float
    training: float
    prefill: float
    decode: float
    measured: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str) -> "Gpu":
        """A name from configs/gpu, or `name:GiB:TFLOPs`, for which the shares of the A100 are assumed.

        Raises ValueError otherwise, and for a number that is not positive or a share above 1.
        """
        name, *numbers = text.split(":")
        if numbers:
            return cls._checked(text, {"name": name} | _numbers(text, numbers))
        if name not in choices("gpu"):
            raise ValueError(f"{unknown('GPU', text, choices('gpu'))} Or give name:GiB:TFLOPs.")
        return cls._checked(f"configs/gpu/{name}.yaml", _file(name))

    @classmethod
    def all(cls, texts: Iterable[object]) -> list["Gpu"]:
        """Several GPUs, each with a column in the plan. Raises ValueError as `of`, and for one that appears twice."""
        gpus = [cls.of(str(text)) for text in texts]
        names = [gpu.name for gpu in gpus]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"gpus=[...] has {', '.join(sorted(twice))} twice; name each GPU once.")
        return gpus

    def hours(self, *, training: float = 0.0, prefill: float = 0.0, decode: float = 0.0) -> float:
        """Hours for so many FLOPs of each kind."""
        seconds = training / self.training + prefill / self.prefill + decode / self.decode
        return seconds / (self.tflops * 1e12) / 3600

    def shares(self) -> str:
        """The shares of the peak rate as text, the measured ones marked."""
        marks = {share: " (measured)" if share in self.measured else "" for share in SHARES}
        return f"{self.name} " + ", ".join(f"{share} {getattr(self, share)}{marks[share]}" for share in SHARES)

    @classmethod
    def _checked(cls, where: str, spec: dict[str, Any]) -> "Gpu":
        shares = {**_file(ASSUMED)["efficiency"], **spec.get("efficiency", {})}
        measured = tuple(spec.get("measured", ()))
        for share in (*shares, *measured):
            if share not in SHARES:
                raise ValueError(f"{where}: {unknown('share of the peak', share, SHARES)}")
        for key in ("memory_gib", "tflops"):
            _check_number(where, key, spec.get(key), float("inf"))
        for key, value in shares.items():
            _check_number(where, key, value, 1)
        return cls(spec["name"], float(spec["memory_gib"]), float(spec["tflops"]), **shares, measured=measured)


def fits(peak: float, gpu: Gpu) -> bool:
    """Whether `peak` bytes fit on the GPU beside the reserve."""
    return peak / GIB + RESERVE_GIB <= gpu.memory_gib


def is_positive(value: object) -> bool:
    """Whether a config's value is a finite number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


def _check_number(where: str, key: str, value: object, most: float) -> None:
    if not is_positive(value) or value > most:  # type: ignore[operator]
        raise ValueError(f"{where}: {key}={value} must be a number above 0{', at most 1' if most == 1 else ''}.")


def _file(name: str) -> dict[str, Any]:
    spec = OmegaConf.load(CONFIGS / "gpu" / f"{name}.yaml")
    assert isinstance(spec, DictConfig)
    content: Any = OmegaConf.to_container(spec)
    return {"name": name, **content}


def _numbers(text: str, numbers: list[str]) -> dict[str, float]:
    try:
        memory, tflops = map(float, numbers)
    except ValueError:
        raise ValueError(f"GPU '{text}' is not name:GiB:TFLOPs, e.g. rtx4090:24:165.") from None
    return {"memory_gib": memory, "tflops": tflops}
