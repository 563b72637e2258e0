"""GPUs: memory, rates, and how long so many operations take on one."""

from dataclasses import dataclass

from omegaconf import OmegaConf

from scripts.config import CONFIGS, choices


@dataclass(frozen=True)
class Gpu:
    """A GPU: memory in GiB, peak bf16 TFLOPs, and the shares of the peak that are assumed to be reached."""

    name: str
    memory_gib: float
    tflops: float
    training: float
    prefill: float
    decode: float

    @classmethod
    def of(cls, text: str) -> "Gpu":
        """A name from configs/gpu, or `name:GiB:TFLOPs` (efficiencies as for the A100). Raises ValueError otherwise."""
        name, *numbers = text.split(":")
        known = choices("gpu")
        if not numbers and name not in known:
            raise ValueError(f"Unknown GPU '{text}'; choose one of {', '.join(known)}, or give name:GiB:TFLOPs.")
        spec = OmegaConf.load(CONFIGS / "gpu" / f"{'a100_40g' if numbers else name}.yaml")
        if not numbers:
            return cls(spec.name, spec.memory_gib, spec.tflops, **spec.efficiency)
        try:
            memory, tflops = map(float, numbers)
        except ValueError:
            raise ValueError(f"GPU '{text}' is not name:GiB:TFLOPs, e.g. rtx4090:24:165.") from None
        return cls(name, memory, tflops, **spec.efficiency)

    def hours(self, *, training: float = 0.0, prefill: float = 0.0, decode: float = 0.0) -> float:
        """Hours for so many FLOPs of each kind."""
        seconds = training / self.training + prefill / self.prefill + decode / self.decode
        return seconds / (self.tflops * 1e12) / 3600
