"""Attention of short sequences on a CPU: two products and a softmax, where torch's fused kernel is slow."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv
from transformers.masking_utils import eager_mask

NAME = "products"  # by which transformers knows it
# What models may ask of attention beyond the equation of `attend`, by the name of transformers' argument.
BEYOND = {
    "dropout": "dropout",
    "s_aux": "sinks",
    "softcap": "capped scores",
    "position_bias": "biases of positions",
    "indices": "chosen keys",
    "block_indices": "chosen blocks of keys",
}


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **others: Any
) -> tuple[Tensor, None]:
    """softmax(scaling * Q K^T + mask) V, in the type that autocast gives products.

    query: (b, H, t, d); key, value: (b, K, t, d), where H is a multiple of K; attention_mask: (b, 1, t, t), to be added
    returns (b, t, H, d), and no weights. Scores and weights, (b, H, t, t) each, are kept for the gradient, so this is
    for short sequences.
    Raises ValueError for what it does not compute (`BEYOND`). Other arguments are for kernels, or the mask holds them.
    """
    refuse(others)
    batch, heads, tokens = query.shape[:3]
    key, value = (repeat_kv(x, heads // x.shape[1]).flatten(0, 1) for x in (key, value))  # (b, K, t, d) -> (bH, t, d)
    least = torch.finfo(value.dtype).min  # the mask's own would become -inf in bfloat16
    mask = attention_mask.clamp(min=least).to(value.dtype).expand(-1, heads, -1, -1).flatten(0, 1)  # (bH, t, t)
    scores = torch.baddbmm(mask, query.flatten(0, 1), key.transpose(1, 2), alpha=scaling)  # (bH, t, t)
    output = torch.bmm(scores.softmax(-1), value)  # (bH, t, d)
    return output.view(batch, heads, tokens, -1).transpose(1, 2).contiguous(), None


def use_products(network: PreTrainedModel) -> None:
    """Let the network's attention be `attend`.

    Raises ValueError if the network asks for more than that computes, as far as its config and its parameters tell.
    """
    config = network.config.get_text_config()
    dropout = max(getattr(config, name, None) or 0.0 for name in ("attention_dropout", "attn_pdrop"))
    sinks = next((each for name, each in network.named_parameters() if name.endswith(".sinks")), None)
    refuse({"dropout": dropout, "s_aux": sinks, "softcap": getattr(config, "attn_logit_softcapping", None)})
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, eager_mask)
    network.set_attn_implementation(NAME)


def refuse(arguments: dict[str, Any]) -> None:
    """Raises ValueError if one of `BEYOND` is among the arguments and has a value other than None and zero."""
    values = {name: arguments[name] for name in BEYOND.keys() & arguments.keys()}
    if asked := sorted(BEYOND[name] for name, value in values.items() if isinstance(value, Tensor) or value):
        raise ValueError(
            f"trainer.attention=products does not compute {' and '.join(asked)}, which this model asks for; "
            "use trainer.attention=fused."
        )
