"""Mixture of Shards (MoS) and its neighbours as PEFT methods. Importing the package registers them with PEFT."""

from mos.config import MosConfig
from mos.convert import convert_upstream
from mos.export import export_lora
from mos.layer import MosLayer
from mos.model import MosModel
from mos.prolora import ProloraConfig
from mos.registration import register
from mos.tied_lora import TiedLoraConfig

__all__ = ["MosConfig", "MosLayer", "MosModel", "ProloraConfig", "TiedLoraConfig", "convert_upstream", "export_lora"]

register("mos", MosConfig, MosModel)
