"""Mixture of Shards (MoS) and its neighbours as PEFT methods. Importing the package registers them with PEFT."""

from peft import VeraConfig, VeraModel

from mos.common.keeping import kept_factors
from mos.config import MosConfig
from mos.convert import convert_upstream
from mos.export import export_lora
from mos.factors import mos_factors
from mos.layer import MosLayer
from mos.model import MosModel
from mos.prolora import ProloraConfig
from mos.registration import read_in_transformers, register
from mos.tied_lora import TiedLoraConfig
from mos.vera import vera_factors

__all__ = [
    "MosConfig",
    "MosLayer",
    "MosModel",
    "ProloraConfig",
    "TiedLoraConfig",
    "convert_upstream",
    "export_lora",
    "kept_factors",
]

read_in_transformers("mos_[AB]")
register("mos", MosConfig, MosModel, mos_factors)
register("vera", VeraConfig, VeraModel, vera_factors)  # PEFT's own method, known to PEFT already
