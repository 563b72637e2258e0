"""Mixture of Shards (MoS) and its neighbours as PEFT methods. Importing the package registers them with PEFT."""

from mos.config import MosConfig
from mos.layer import MosLayer
from mos.model import MosModel
from mos.registration import register

__all__ = ["MosConfig", "MosLayer", "MosModel"]

register("mos", MosConfig, MosModel)
