"""Memory and floating-point operations of a cell, from counts alone: pure functions, in bytes and FLOPs.

Letters: L blocks, h hidden size, V vocabulary, f width of the inner layer of a block, r rank.
docs/tables.md compares the memory model with measured peaks and states its error.
"""

from dataclasses import asdict, dataclass

from scripts.cost.architecture import Adapter, Architecture

GIB = 2**30
MASTER_BYTES = 4  # adapter weights, gradients and both Adam moments are float32
LOGIT_BYTES = 12  # per logit: 16-bit logits (2), float32 log-softmax (4) and its gradient (4), 16-bit gradient (2)
COMPUTE_BYTES = 2  # matrix products and the evaluated model are 16-bit
KEPT_BYTES = 4  # what is not quantized (embeddings, head, norms) trains in float32, and so does the residual stream
DROPPED_BYTES = 6  # per input of an adapted layer: the float32 mask of its dropout (4) and the 16-bit product (2)


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
    """Bits per weight of the quantization state.

    There is one scale per 64 weights. It is a float32; with double quantization it has 8 bits, and 256 scales share a
    float32 (QLoRA, section 3).
    """
    return 8 / 64 + 32 / (64 * 256) if double else 32 / 64


def quantized_bytes(model: Architecture, double: bool) -> float:
    """Bytes of the linear layers in 4 bits, with their quantization state."""
    return model.linear_weights * (4 + quantization_bits(double)) / 8


def block_activations(model: Architecture, adapter: Adapter, tokens: int) -> float:
    """Bytes that one block keeps for its backward pass, under bf16 autocast on a 4-bit base; a mean over the blocks.

    Per token: the input of each norm; queries, keys, values and the attention's result in 16 bits; what the inner
    layers write, and their gated product; the masked input of each adapted layer and its product of width r. Per
    adapted layer also 16-bit copies of its two factors. With LoRA on all layers of a Llama, the first three and the
    masked inputs come to 48h + 4kv + 18f per token.

    tests/scripts/cost/test_activations.py counts saved tensors on a CPU: nine families agree within 2%. A GPU keeps a
    dropout mask in one byte instead of four, so there the number is an upper bound.
    """
    inner_outputs = model.inner_outputs
    gated_product = model.inner if inner_outputs > model.inner else 0
    per_token = (
        KEPT_BYTES * model.norms / model.blocks
        + COMPUTE_BYTES * (2 * model.attention + 2 * model.kv)
        + KEPT_BYTES * (inner_outputs + gated_product)
        + DROPPED_BYTES * adapter.inputs / model.blocks
        + COMPUTE_BYTES * adapter.rank * adapter.count / model.blocks
    )
    return tokens * per_token + COMPUTE_BYTES * adapter.rank * adapter.width / model.blocks


def training_memory(
    model: Architecture,
    adapter: Adapter,
    *,
    batch: int,
    length: int,
    checkpointing: bool,
    double_quantization: bool,
    dequantized: bool = False,
) -> Memory:
    """Bytes while finetuning the 4-bit base with AdamW on micro-batches of batch x length tokens.

    dequantized: the base is kept in 16 bits, without a quantization state
    """
    tokens = batch * length
    block = block_activations(model, adapter, tokens)
    logits = LOGIT_BYTES * tokens * model.vocab + COMPUTE_BYTES * model.vocab * model.hidden  # and the head's copy
    activations = block * model.blocks
    if checkpointing:
        kept = KEPT_BYTES * tokens * model.hidden * model.blocks  # the inputs of the blocks
        activations = kept + max(block - logits, 0.0)  # the logits are gone before a block is recomputed
    return Memory(
        weights=model.linear_weights * (COMPUTE_BYTES if dequantized else 4 / 8),
        quantization=0.0 if dequantized else model.linear_weights * quantization_bits(double_quantization) / 8,
        embeddings=model.other_weights * KEPT_BYTES,
        adapter=MASTER_BYTES * (adapter.trainable + adapter.frozen),
        gradients=MASTER_BYTES * adapter.trainable,
        optimizer=2 * MASTER_BYTES * adapter.trainable,
        activations=activations,
        logits=logits,
    )


def training_flops(model: Architecture, adapter: Adapter, *, tokens: int, length: int, checkpointing: bool) -> float:
    """FLOPs of forward and backward over `tokens` tokens in sequences of `length`; a multiply-add is 2.

    The frozen base needs gradients of its inputs only, so its backward costs as much as its forward. The adapter's
    costs twice as much. Checkpointing adds one more forward of the blocks. Attention counts in full: models whose
    blocks look at a window only take less.
    """
    linear = 2 * model.linear_weights
    attention = 2 * model.blocks * model.attention * length  # scores and values; causal, so half of all pairs
    low_rank = 2 * adapter.rank * adapter.width
    head = 2 * model.vocab * model.hidden
    forward = linear + attention + low_rank
    backward = linear + 2 * attention + 2 * low_rank
    return tokens * (forward * (2 if checkpointing else 1) + backward + 2 * head)


def generation_flops(model: Architecture, adapter: Adapter | None, *, prompt: float, new: float) -> tuple[float, float]:
    """FLOPs to read one prompt of `prompt` tokens, and to write `new` tokens after it; without prefix caching."""
    weights = model.linear_weights + model.vocab * model.hidden
    low_rank = adapter.rank * adapter.width if adapter else 0
    per_token = 2 * (weights + low_rank)
    attention = 2 * model.blocks * model.attention
    return prompt * (per_token + attention * prompt), new * (per_token + 2 * attention * (prompt + new / 2))


def kv_bytes(model: Architecture, tokens: float) -> float:
    """Bytes of the key-value cache of `tokens` tokens, 16-bit; without the savings of attention windows."""
    return 2 * COMPUTE_BYTES * model.blocks * model.kv * tokens


def evaluation_weights(model: Architecture, adapter: Adapter | None) -> float:
    """Bytes of the dequantized 16-bit base and one adapter as LoRA."""
    low_rank = adapter.rank * adapter.width if adapter else 0
    return COMPUTE_BYTES * (model.weights + low_rank)


def vera_adapter(model: Architecture, rank: int) -> Adapter:
    """VeRA on all linear layers of the blocks, each of which trains d of width r and b as wide as its output.

    Its two frozen matrices are shared, and as wide as the widest layer.
    """
    layers = model.linears
    widest = max(linear.inputs for linear in layers) + max(linear.outputs for linear in layers)
    trainable = sum(linear.count * (rank + linear.outputs) for linear in layers)
    return Adapter(trainable, rank, layers, frozen=rank * widest)


def vera_rank(model: Architecture, trainable: int) -> int:
    """The largest VeRA rank within `trainable` parameters."""
    scales = vera_adapter(model, 0)
    return (trainable - scales.trainable) // scales.count
