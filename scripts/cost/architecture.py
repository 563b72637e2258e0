"""What counts and costs depend on in a base model and its adapter, read off the modules themselves.

Letters: L blocks, h hidden size, V vocabulary, f width of the inner layer of a block, r rank.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a command imports torch only once every config is known to be right
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Linear:
    """Linear layers of one name and width: what they read and write per token, and how many the model has of them."""

    name: str
    inputs: int
    outputs: int
    count: int


def grouped(layers: Iterable[tuple[str, "nn.Module"]]) -> tuple[Linear, ...]:
    """Linear layers by the last part of their names and their widths, in the order of the model."""
    found = Counter((name.rpartition(".")[2], *_widths(layer)) for name, layer in layers)
    return tuple(Linear(*key, count) for key, count in found.items())


@dataclass(frozen=True)
class Adapter:
    """What a method adds: trainable and frozen parameters, the rank at which it computes, the layers it sits on."""

    trainable: int
    rank: int
    layers: tuple[Linear, ...]
    frozen: int = 0  # VeRA's shared random matrices

    @property
    def count(self) -> int:
        """Adapted layers of the whole model."""
        return sum(layer.count for layer in self.layers)

    @property
    def inputs(self) -> int:
        """Summed width of what the adapted layers read."""
        return sum(layer.count * layer.inputs for layer in self.layers)

    @property
    def outputs(self) -> int:
        """Summed width of what the adapted layers write."""
        return sum(layer.count * layer.outputs for layer in self.layers)

    @property
    def width(self) -> int:
        """Inputs and outputs together: the parameters of a LoRA of rank 1 on these layers."""
        return self.inputs + self.outputs


@dataclass(frozen=True)
class Architecture:
    """The dimensions of a causal decoder that counts and costs depend on."""

    vocab: int
    hidden: int
    blocks: int
    attention: int  # width of the queries of all heads; of Llama h
    kv: int  # width of the keys of all heads, and of the values
    norms: int  # summed width of what the norms of all blocks read
    linears: tuple[Linear, ...]  # of all blocks; they are quantized
    other_weights: int  # embeddings, head, norms and biases, which are not; tied ones count once

    @classmethod
    def of(cls, network: "PreTrainedModel") -> "Architecture":
        """Counted on the modules of `network`, which may be on the meta device."""
        from scripts.cell.adapter import linear_layers

        config = network.config
        embedding: Any = network.get_input_embeddings()
        vocab, hidden = embedding.weight.shape
        heads = config.num_attention_heads
        head = getattr(config, "head_dim", None) or hidden // heads
        attention, kv = heads * head, (getattr(config, "num_key_value_heads", None) or heads) * head
        linears = grouped(linear_layers(network).items())
        return cls(
            vocab=vocab,
            hidden=hidden,
            blocks=config.num_hidden_layers,
            attention=attention,
            kv=kv,
            norms=sum(_norm_inputs(name, layer, attention, kv) for name, layer in network.named_modules()),
            linears=linears,
            other_weights=network.num_parameters() - sum(each.count * each.inputs * each.outputs for each in linears),
        )

    @cached_property
    def linear_weights(self) -> int:
        """Weights that are quantized: those of the linear layers of all blocks."""
        return sum(linear.count * linear.inputs * linear.outputs for linear in self.linears)

    @property
    def weights(self) -> int:
        """All weights of the model."""
        return self.linear_weights + self.other_weights

    @property
    def inner(self) -> int:
        """f: what the last layer of a block reads, which is wider than what any other reads."""
        return max(linear.inputs for linear in self.linears)

    @property
    def inner_outputs(self) -> float:
        """What the inner layers of one block write: 2f where a gate multiplies them (Llama), else f (GPT-2).

        All that a block writes, less queries, keys and values, and less the two layers that write back to the stream.
        """
        outputs = sum(linear.count * linear.outputs for linear in self.linears) / self.blocks
        return outputs - (self.attention + 2 * self.kv) - 2 * self.hidden


def _widths(layer: Any) -> tuple[int, int]:
    """In- and out-features of a torch.nn.Linear, or of GPT-2's Conv1D."""
    if hasattr(layer, "in_features"):
        return layer.in_features, layer.out_features
    return layer.nx, layer.nf


def _norm_inputs(name: str, layer: Any, attention: int, kv: int) -> int:
    """The width of what `layer` reads per token, if it is a norm of a block; else 0.

    A norm is a module whose own weight is a vector. One on queries or keys has the width of a head or of all heads.
    """
    weight = layer._parameters.get("weight")
    in_a_block = any(part.isdigit() for part in name.split("."))
    if not in_a_block or weight is None or weight.dim() != 1:
        return 0
    return {"q": attention, "k": kv}.get(name.rpartition(".")[2].partition("_")[0], len(weight))
