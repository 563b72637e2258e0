"""Tiny random models of several families, by the arguments of their transformers config: as `model.architecture`."""

from omegaconf import DictConfig, OmegaConf

COMMON = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
OWN_HEAD = {"head_dim": 32}  # so that the heads together are twice as wide as the hidden size
FAMILIES = {
    "Llama": {"model_type": "llama"},
    "Llama 3.2": {"model_type": "llama", "tie_word_embeddings": True},
    "Mistral": {"model_type": "mistral"},
    "Qwen2": {"model_type": "qwen2"},  # biases
    "Qwen3": {"model_type": "qwen3"} | OWN_HEAD,  # norms on queries and keys
    "Gemma 3": {"model_type": "gemma3_text"} | OWN_HEAD,  # four norms a block, tied
    "Phi 3": {"model_type": "phi3"},  # query, key and value fused, gate and up fused
    "OLMo 2": {"model_type": "olmo2"},  # norms behind the layers
    "StarCoder 2": {"model_type": "starcoder2"},  # no gate
}


def model(family: str, **architecture: object) -> DictConfig:
    """The config of a tiny model, as a file of configs/model gives it."""
    inputs = {"attention_inputs": ["qkv_proj"]} if family == "Phi 3" else {}
    content = {"name": "tiny", "source": {"kind": "hub"}, **inputs}
    return OmegaConf.create(content | {"architecture": COMMON | FAMILIES[family] | architecture})
