"""PRoLoRA: the factors of each layer are built from one chunk, repeated and rotated along the rank (a baseline)."""

from mos.prolora.config import ProloraConfig
from mos.prolora.factors import prolora_factors
from mos.prolora.layer import ProloraLinear, assemble
from mos.prolora.model import ProloraModel
from mos.registration import read_in_transformers, register

__all__ = ["ProloraConfig", "ProloraLinear", "ProloraModel", "assemble"]

read_in_transformers("prolora_[AB]", "prolora_unshared_[AB]")
register("prolora", ProloraConfig, ProloraModel, prolora_factors)
