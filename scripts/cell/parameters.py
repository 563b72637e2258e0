"""An adapter on the shapes of its base model: on the meta device nothing is downloaded or allocated."""

from typing import TYPE_CHECKING

from omegaconf import DictConfig

if TYPE_CHECKING:  # a command imports torch only once every config is known to be right
    from peft import PeftModel
    from transformers import PreTrainedModel


def trainable_parameters(cfg: DictConfig) -> int:
    """The trainable parameters of `cfg.method` on `cfg.model`, 0 for a vanilla row.

    Raises ValueError where the method does not fit the model.
    """
    if cfg.method.config is None:
        return 0
    from scripts.cell.shapes import meta_model

    return int(on_shapes(cfg.method, meta_model(cfg.model)).get_nb_trainable_parameters()[0])


def on_shapes(method: DictConfig, network: "PreTrainedModel") -> "PeftModel":
    """`network`, a model on the meta device, with the adapter of `method`. Raises ValueError where it does not fit."""
    from peft import get_peft_model

    from scripts.cell.adapter import adapter_config

    return get_peft_model(network, adapter_config(method, network), low_cpu_mem_usage=True)
