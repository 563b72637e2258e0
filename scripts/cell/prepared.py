"""The base model as it trains: what is kept in which precision, and which batches are checkpointed."""

import torch
from omegaconf import DictConfig
from peft import prepare_model_for_kbit_training
from transformers import PreTrainedModel

from scripts.cell.base_model import compute_dtype

SHARE = 0.85  # of the free memory: what the plan says a batch takes is no measurement
MULTIPLE = 64  # tokens


def prepared(network: PreTrainedModel, trainer: DictConfig) -> PreTrainedModel:
    """The 4-bit base, frozen, with the precisions that `trainer` asks for.

    `trainer.upcast`: all that is not in 4 bits becomes float32, and so does the residual stream; this is PEFT's
    preparation of a 4-bit model. `trainer.dequantize_once`: the linear layers hold their dequantized weights, in
    `compute_dtype`.
    """
    if trainer.upcast:
        # The trainer turns checkpointing on, in the form that needs no gradient of the input.
        network = prepare_model_for_kbit_training(network, use_gradient_checkpointing=False)
    if trainer.dequantize_once:
        network = network.dequantize(compute_dtype(trainer))
    return network.requires_grad_(False)  # at last, since dequantized weights are new parameters


def uncheckpointed_tokens(cfg: DictConfig) -> int:
    """The micro-batches, in tokens, that this machine trains without checkpointing; 0 on a CPU if not set."""
    if cfg.trainer.uncheckpointed_tokens is not None:
        return int(cfg.trainer.uncheckpointed_tokens)
    if not cfg.trainer.gradient_checkpointing or not torch.cuda.is_available():
        return 0
    return fitting_tokens(cfg, SHARE * torch.cuda.mem_get_info()[0])


def fitting_tokens(cfg: DictConfig, memory: float) -> int:
    """The largest micro-batch without checkpointing that takes at most `memory` bytes by the plan, in tokens.

    A multiple of `MULTIPLE`, and at most the longest micro-batch; 0 if none fits.
    """
    from scripts.cell.shapes import meta_model
    from scripts.cost.architecture import Architecture
    from scripts.cost.inputs import training_memory
    from scripts.cost.parameters import adapter

    model, added = Architecture.of(meta_model(cfg.model)), adapter(cfg)
    assert added is not None, f"{cfg.method.name} trains nothing"
    longest = cfg.trainer.micro_batch_size * cfg.trainer.max_length
    sizes = range(MULTIPLE, longest + MULTIPLE, MULTIPLE)
    fitting = [size for size in sizes if training_memory(cfg, model, added, False, size).peak <= memory]
    return min(longest, max(fitting, default=0))
