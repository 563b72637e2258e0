"""As light as LoRA: the operations that are dispatched, counted on a Llama of 8 blocks, r 16, dropout 0.1."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

from mos import MosConfig, ProloraConfig, kept_factors

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BLOCKS, TYPES = 8, len(TARGETS)
LAYERS = BLOCKS * TYPES
COMMON = {"r": 16, "target_modules": TARGETS}
CONFIGS = {
    "lora": lambda: LoraConfig(lora_dropout=0.1, **COMMON),
    "mos": lambda: MosConfig(equivalent_rank=8, dropout=0.1, **COMMON),
    "mos, scaled": lambda: MosConfig(equivalent_rank=8, dropout=0.1, random_scaling=True, **COMMON),
    "prolora": lambda: ProloraConfig(dropout=0.1, **COMMON),
}
VIEWS = {"aten::_unsafe_view"}  # the others say in their schema that they return an alias


class Operations(TorchDispatchMode):
    """Counts what writes a tensor."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        schema = function._schema
        views = any(value.alias_info is not None and not value.alias_info.is_write for value in schema.returns)
        self.count += not views and schema.name not in VIEWS
        return function(*args, **(kwargs or {}))


def build(method, **settings):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": BLOCKS}
    base = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes))
    return get_peft_model(base, CONFIGS[method](**settings))


def training(model):
    ids = torch.arange(16).view(2, 8)
    model.train()(ids, labels=ids).loss.backward()  # the first step makes what later ones have
    model.zero_grad()
    with Operations() as operations:
        model(ids, labels=ids).loss.backward()
    return operations.count


@torch.no_grad()
def decoding(model):
    """One token with a cache of four."""
    cache = model.eval()(torch.arange(4)[None], use_cache=True).past_key_values
    model(torch.tensor([[4]]), past_key_values=cache)
    with Operations() as operations:
        model(torch.tensor([[5]]), past_key_values=cache)
    return operations.count


def decoding_with_kept_factors(model):
    with kept_factors(model):
        return decoding(model)


@pytest.fixture(scope="module")
def lora():
    model = build("lora")
    return {"training": training(model), "decoding": decoding(model)}


def test_a_training_step(lora):
    """A layer: 2 for its factors, 4 of dropout, 2 products; backward 4, 1 of dropout, 1 for the sum over its readers.

    That is one less than LoRA, and backward needs 8 per layer type to scatter the gradients of all its blocks.
    """
    assert training(build("mos")) - lora["training"] == -LAYERS + 8 * TYPES == 0


def test_a_decoding_step(lora):
    """Two factors and two products, against LoRA's two products, a scaling and a sum."""
    assert decoding(build("mos")) == lora["decoding"]
    assert decoding_with_kept_factors(build("mos")) == lora["decoding"] - 2 * LAYERS


def test_random_scales_cost_a_product_each_way(lora):
    model = build("mos, scaled")
    assert decoding(model) - lora["decoding"] == LAYERS
    assert decoding_with_kept_factors(model) == lora["decoding"] - 2 * LAYERS


def test_kept_factors_of_any_method(lora):
    assert decoding_with_kept_factors(build("prolora")) == lora["decoding"] - 2 * LAYERS


@pytest.mark.parametrize("blocks", [2, 8])
def test_the_scattering_does_not_grow_with_the_blocks(blocks):
    """One scatter per pool, however many blocks read it."""

    class Scatters(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            Scatters.count += function is torch.ops.aten.index_add_.default
            return function(*args, **(kwargs or {}))

    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": blocks}
    base = LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes))
    model = get_peft_model(base, MosConfig(r=4, equivalent_rank=4, dropout=0.1, target_modules=TARGETS))
    ids = torch.arange(8)[None]
    with Scatters():
        model(ids, labels=ids).loss.backward()
    assert Scatters.count == 2 * TYPES
