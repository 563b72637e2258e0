"""Tiny random models of the architectures that the tests try, each built the same way every time.

Widths are multiples of 4, and heads of 32 are what vLLM serves. Every kind of block occurs at least three times.
"""

import torch
import transformers as hf

VOCABULARY = 64
LLAMA_LIKE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,  # grouped queries
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
HEADS = {"head_dim": 32}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
GPT = {"vocab_size": VOCABULARY, "n_positions": 128, "n_embd": 128, "n_layer": 3, "n_head": 4}
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
T5 = {"vocab_size": VOCABULARY, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 3, "num_heads": 4}
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "encoder_layers": 3,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "max_position_embeddings": 128,
    "init_std": 0.2,
    "pad_token_id": 1,
}
SIGHT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 4}
IMAGE = {"image_size": 8}
IMAGE_TOKEN = 60


def llava():
    return hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(
            vision_config=hf.CLIPVisionConfig(**SIGHT, **IMAGE, projection_dim=64),
            text_config=hf.LlamaConfig(**LLAMA_LIKE),
            image_token_id=IMAGE_TOKEN,
            vision_feature_layer=-1,
        )
    )


def deepseek():
    latent = {"q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "n_shared_experts": 1}
    return hf.DeepseekV3ForCausalLM(
        hf.DeepseekV3Config(
            **LLAMA_LIKE | {"num_key_value_heads": 4, "num_hidden_layers": 4},
            **latent,
            **experts,
            moe_intermediate_size=48,
            first_k_dense_replace=1,
        )
    )


def gpt_oss():
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return hf.GptOssForCausalLM(hf.GptOssConfig(**LLAMA_LIKE, **HEADS, **experts, sliding_window=4))


def neox():
    shapes = {name: LLAMA_LIKE[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(vocab_size=VOCABULARY, num_attention_heads=4, **shapes))


BUILDERS = {
    "Llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA_LIKE)),
    "Mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**LLAMA_LIKE, sliding_window=4)),
    "Qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**LLAMA_LIKE, tie_word_embeddings=True)),
    "Qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**LLAMA_LIKE, **HEADS)),
    "Gemma 2": lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**LLAMA_LIKE, **HEADS, sliding_window=4)),
    "Gemma 3": lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**LLAMA_LIKE, **HEADS, sliding_window=4)),
    "Phi 3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**LLAMA_LIKE)),
    "GPT-NeoX": neox,
    "GPT-2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT)),
    "GPT-J": lambda: hf.GPTJForCausalLM(hf.GPTJConfig(**GPT, rotary_dim=16)),
    "OPT": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            word_embed_proj_dim=128,
            ffn_dim=96,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=128,
        )
    ),
    "BLOOM": lambda: hf.BloomForCausalLM(hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=128, n_layer=3, n_head=4)),
    "Mixtral": lambda: hf.MixtralForCausalLM(
        hf.MixtralConfig(**LLAMA_LIKE | {"intermediate_size": 48}, num_local_experts=4, num_experts_per_tok=2)
    ),
    "Qwen2-MoE": lambda: hf.Qwen2MoeForCausalLM(
        hf.Qwen2MoeConfig(**LLAMA_LIKE, **EXPERTS, shared_expert_intermediate_size=48)
    ),
    "Qwen3-MoE": lambda: hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**LLAMA_LIKE, **HEADS, **EXPERTS)),
    "DeepSeek-V3": deepseek,
    "gpt-oss": gpt_oss,
    "T5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, decoder_start_token_id=0)),
    "BART": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART)),
    "BERT": lambda: hf.BertForMaskedLM(hf.BertConfig(**BERT)),
    "RoBERTa": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**BERT)),
    "DeBERTa-v2": lambda: hf.DebertaV2ForMaskedLM(hf.DebertaV2Config(**BERT)),
    "ViT": lambda: hf.ViTForImageClassification(hf.ViTConfig(**SIGHT, **IMAGE)),
    "Llava": llava,
}


def tiny(name: str) -> hf.PreTrainedModel:
    """The model of this architecture, in float32 and evaluation mode; its parameters are drawn with seed 0."""
    torch.manual_seed(0)
    return BUILDERS[name]().eval()
