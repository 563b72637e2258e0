"""Tied LoRA: one pair of factors for the query, key and value projections of all blocks (a baseline)."""

from mos.registration import read_in_transformers, register
from mos.tied_lora.config import TiedLoraConfig
from mos.tied_lora.factors import tied_lora_factors
from mos.tied_lora.layer import TiedLoraLinear
from mos.tied_lora.model import TiedLoraModel

__all__ = ["TiedLoraConfig", "TiedLoraLinear", "TiedLoraModel"]

read_in_transformers("tied_lora_[ABuv]")
register("tied_lora", TiedLoraConfig, TiedLoraModel, tied_lora_factors)
