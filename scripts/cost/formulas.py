"""Memory and floating-point operations of a cell, from shapes and counts alone; pure functions, bytes and FLOPs.

Letters as in the paper: L blocks, h hidden size, r rank; besides, f inner size and V vocabulary.
docs/tables.md compares the memory model with measured peaks and states its error.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

GIB = 2**30
MASTER_BYTES = 4  # adapter weights, gradients and both Adam moments are float32
LOGIT_BYTES = 12  # per logit: 16-bit logits (2), float32 log-softmax (4) and its gradient (4), 16-bit gradient (2)
COMPUTE_BYTES = 2  # matrix products and the evaluated model are 16-bit
KEPT_BYTES = 4  # what is not quantized (embeddings, head, norms) trains in float32, and so does the residual stream


@dataclass(frozen=True)
class Architecture:
    """The dimensions that counts and costs depend on."""

    vocab: int
    hidden: int
    inner: int
    blocks: int
    heads: int
    kv_heads: int
    tied: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any] | None) -> "Architecture":
        """From the LlamaConfig arguments of `configs/model`. Raises ValueError where that file gives none."""
        if config is None:
            raise ValueError(
                "This model's config has no `architecture`; costs need its dimensions (see configs/model)."
            )
        return cls(
            vocab=config["vocab_size"],
            hidden=config["hidden_size"],
            inner=config["intermediate_size"],
            blocks=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            tied=config.get("tie_word_embeddings", False),
        )

    @property
    def kv(self) -> int:
        """Width of a key or value projection."""
        return self.hidden * self.kv_heads // self.heads

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """In- and out-features of the seven linear layers of a block."""
        h, f, kv = self.hidden, self.inner, self.kv
        return {
            "q_proj": (h, h), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (h, h),
            "gate_proj": (h, f), "up_proj": (h, f), "down_proj": (f, h),
        }  # fmt: skip

    @property
    def linear_weights(self) -> int:
        """Weights that are quantized: the linear layers of all blocks."""
        return self.blocks * sum(i * o for i, o in self.linears.values())

    @property
    def other_weights(self) -> int:
        """Weights that are not quantized: embeddings, head, norms."""
        return self.vocab * self.hidden * (1 if self.tied else 2) + (2 * self.blocks + 1) * self.hidden


@dataclass(frozen=True)
class Adapter:
    """What a method adds: trainable and frozen parameters, the rank at which it computes, the layers it sits on."""

    trainable: int
    rank: int
    targets: tuple[str, ...]
    frozen: int = 0  # VeRA's shared random matrices

    def width(self, model: Architecture) -> int:
        """Sum over the targets of one block of in- plus out-features."""
        return sum(sum(model.linears[name]) for name in self.targets)


@dataclass(frozen=True)
class Memory:
    """Bytes by purpose."""

    weights: float
    quantization: float
    embeddings: float
    adapter: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def peak(self) -> float:
        """Bytes that have to fit at once."""
        return float(sum(asdict(self).values()))


def quantization_bits(double: bool) -> float:
    """Bits per weight of the quantization state: one scale per 64 weights, in float32, or in 8 bits with a float32
    scale per 256 of them (double quantization, QLoRA)."""
    return 8 / 64 + 32 / (64 * 256) if double else 32 / 64


def block_activations(model: Architecture, adapter: Adapter, tokens: int) -> float:
    """Bytes that one block keeps for its backward pass under bf16 autocast.

    Counted with torch's saved-tensor hooks on a 4-bit Llama with LoRA on all seven layers: norms, rotated queries and
    keys, attention, gated product, and the dropped-out input of every adapted layer (48h + 4kv + 18f per token); per
    adapted layer the r-wide product, and the 16-bit copies of its two factors.
    """
    base = 48 * model.hidden + 4 * model.kv + 18 * model.inner
    products = COMPUTE_BYTES * adapter.rank * len(adapter.targets)
    return tokens * (base + products) + COMPUTE_BYTES * adapter.rank * adapter.width(model)


def training_memory(
    model: Architecture, adapter: Adapter, *, batch: int, length: int, checkpointing: bool, double_quantization: bool
) -> Memory:
    """Bytes while finetuning the 4-bit base with AdamW on micro-batches of batch x length tokens."""
    tokens = batch * length
    block = block_activations(model, adapter, tokens)
    logits = LOGIT_BYTES * tokens * model.vocab + COMPUTE_BYTES * model.vocab * model.hidden  # and the head's copy
    activations = block * model.blocks
    if checkpointing:
        kept = KEPT_BYTES * tokens * model.hidden * model.blocks  # the inputs of the blocks
        activations = kept + max(block - logits, 0.0)  # the logits are gone before a block is recomputed
    return Memory(
        weights=model.linear_weights * 4 / 8,
        quantization=model.linear_weights * quantization_bits(double_quantization) / 8,
        embeddings=model.other_weights * KEPT_BYTES,
        adapter=MASTER_BYTES * (adapter.trainable + adapter.frozen),
        gradients=MASTER_BYTES * adapter.trainable,
        optimizer=2 * MASTER_BYTES * adapter.trainable,
        activations=activations,
        logits=logits,
    )


def training_flops(model: Architecture, adapter: Adapter, *, tokens: int, length: int, checkpointing: bool) -> float:
    """FLOPs of forward and backward over `tokens` tokens in sequences of `length`.

    A multiply-add is 2. The frozen base needs gradients of its inputs only, so its backward costs as much as its
    forward (the adapter's twice as much); checkpointing adds one more forward of the blocks.
    """
    linear = 2 * model.linear_weights
    attention = 2 * model.blocks * model.hidden * length  # scores and values, causal: half of 4Lhs
    low_rank = 2 * model.blocks * adapter.rank * adapter.width(model)
    head = 2 * model.vocab * model.hidden
    forward = linear + attention + low_rank
    backward = linear + 2 * attention + 2 * low_rank
    return tokens * (forward * (2 if checkpointing else 1) + backward + 2 * head)


def generation_flops(model: Architecture, adapter: Adapter | None, *, prompt: float, new: float) -> tuple[float, float]:
    """FLOPs to read one prompt of `prompt` tokens and to write `new` tokens after it, without prefix caching."""
    weights = model.linear_weights + model.vocab * model.hidden
    low_rank = model.blocks * adapter.rank * adapter.width(model) if adapter else 0
    per_token = 2 * (weights + low_rank)
    attention = 2 * model.blocks * model.hidden
    return prompt * (per_token + attention * prompt), new * (per_token + 2 * attention * (prompt + new / 2))


def kv_bytes(model: Architecture, tokens: float) -> float:
    """Bytes of the key-value cache of `tokens` tokens, 16-bit."""
    return 2 * COMPUTE_BYTES * model.blocks * model.kv * tokens


def evaluation_weights(model: Architecture, adapter: Adapter | None) -> float:
    """Bytes of the dequantized 16-bit base and one adapter as LoRA."""
    low_rank = model.blocks * adapter.rank * adapter.width(model) if adapter else 0
    return COMPUTE_BYTES * (model.linear_weights + model.other_weights + low_rank)


def vera_rank(model: Architecture, trainable: int) -> int:
    """The largest VeRA rank within `trainable` parameters: per layer it trains r (d) and the out-features (b)."""
    layers = model.blocks * len(model.linears)
    scales = model.blocks * sum(out for _, out in model.linears.values())
    return (trainable - scales) // layers


def vera_adapter(model: Architecture, rank: int) -> Adapter:
    """VeRA on all seven layers; its two frozen matrices are as wide as the widest layer."""
    widest_in = max(i for i, _ in model.linears.values())
    widest_out = max(o for _, o in model.linears.values())
    scales = sum(out for _, out in model.linears.values())
    trainable = model.blocks * (rank * len(model.linears) + scales)
    return Adapter(trainable, rank, tuple(model.linears), frozen=rank * (widest_in + widest_out))
