"""What others do to the model and its files: averaging, pruning, calls of one layer, hooks, threads, half-right files.

Each thing is what users of LoRA do; MoS gives the right values too, or refuses in a sentence and changes nothing.
"""

import threading
from functools import partial

import pytest
import torch
import transformers as hf
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.func import functional_call, grad
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from mos import MosConfig, TiedLoraConfig, export_lora
from tests.mos.tiny_models import EXPERTS, HEADS, LLAMA_LIKE

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def make(tiny_llama):
    """Builds a model with a random MoS adapter, the same each time."""

    def build(config=None, **changes):
        base = tiny_llama(**changes)
        torch.manual_seed(1)
        return get_peft_model(base, config or MosConfig(r=3, init_weights=False)).eval()

    return build


def logits(model, ids):
    with torch.no_grad():
        return model(ids, use_cache=False).logits


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def gradients(model, ids, **kwargs):
    return torch.autograd.grad(model(ids, labels=ids, use_cache=False, **kwargs).loss, trainable(model))


# Files that are half right.


def changed(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def named(tensors, end):
    return next(key for key in tensors if key.endswith(end))


def cut_pool(tensors):
    key = named(tensors, "down_proj.mos_B")
    tensors[key] = tensors[key][:-4].contiguous()


def drop_pool(tensors):
    del tensors[named(tensors, "mos_A")]


def drop_other_pool(tensors):
    del tensors[named(tensors, "mos_B")]


def drop_index(tensors):
    del tensors[next(key for key in tensors if "layers.1" in key and key.endswith("q_proj.mos_index"))]


def cast_indices(tensors):
    tensors.update({key: value.bfloat16() for key, value in tensors.items() if key.endswith("mos_index")})


def average_indices(tensors):
    tensors.update({key: value * 0.99 for key, value in tensors.items() if key.endswith("mos_index")})


def two_pools(tensors):
    key = named(tensors, "q_proj.mos_A")
    tensors[key.replace("layers.0", "layers.1")] = tensors[key] * 5


def lower_index(tensors):
    tensors[named(tensors, "up_proj.mos_index")].sub_(9)  # torch would count the negative ones from the end


def average_one_side(tensors):
    key = named(tensors, "up_proj.mos_index")
    tensors[key] = torch.stack([tensors[key][0].float(), tensors[key][1] * 0.99])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (cut_pool, "it is damaged"),
        (drop_pool, "it is damaged|not a whole adapter file"),
        (drop_other_pool, "it is damaged"),
        (cast_indices, "no indices any more"),
        (average_indices, "no indices any more"),
        (average_one_side, "no indices any more"),
        (lower_index, r"up_proj\.mos_index' holds -\d+.*damaged"),
        (two_pools, "are one parameter here, but differ in the file|differ in width but not in layer type"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(make, tiny_llama, tmp_path, change, said):
    make().save_pretrained(tmp_path)
    changed(tmp_path, change)
    with pytest.raises(ValueError, match=said):
        PeftModel.from_pretrained(tiny_llama(), tmp_path)
    with pytest.raises(ValueError, match=said):
        export_lora(tmp_path, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def test_indices_of_wider_types_are_taken(make, tiny_llama, tmp_path, ids):
    """Float32 holds them exactly, so a file that went through a cast to it is whole."""
    model = make()
    model.save_pretrained(tmp_path)
    changed(tmp_path, lambda tensors: tensors.update({k: v.float() for k, v in tensors.items() if "mos_index" in k}))
    torch.testing.assert_close(logits(PeftModel.from_pretrained(tiny_llama(), tmp_path), ids), logits(model, ids))


@pytest.mark.parametrize("change", [None, cut_pool, drop_pool, cast_indices, two_pools])
def test_a_load_that_fails_leaves_the_adapter_as_it_was(make, tiny_llama, tmp_path, ids, change):
    """None: a file of another rank and budget."""
    model = make()
    before = logits(model, ids)
    other = make() if change else make(MosConfig(r=5, equivalent_rank=4, init_weights=False))
    other.save_pretrained(tmp_path)
    if change:
        changed(tmp_path, change)
    with pytest.raises((ValueError, RuntimeError)):
        model.load_adapter(tmp_path, "default")
    assert torch.equal(logits(model, ids), before)


@pytest.mark.parametrize("name", ["mos_index", "mos_scale", "copy", "get", "share", "kind", "module", "fromkeys"])
def test_an_adapter_may_have_any_name(tiny_llama, tmp_path, ids, name):
    torch.manual_seed(1)
    model = get_peft_model(tiny_llama(), MosConfig(r=3, init_weights=False), adapter_name=name).eval()
    model.save_pretrained(tmp_path)
    folder = tmp_path / name
    for loaded in ("default", name):
        again = PeftModel.from_pretrained(tiny_llama(), folder, adapter_name=loaded)
        assert torch.equal(logits(again, ids), logits(model, ids))


def test_the_pool_may_stand_under_any_layer_of_its_type(make, tiny_llama, tmp_path, ids):
    model = make()
    model.save_pretrained(tmp_path)

    def move(tensors):
        for key in [key for key in tensors if key.endswith(("mos_A", "mos_B"))]:
            tensors[key.replace("layers.0", "layers.2")] = tensors.pop(key)

    changed(tmp_path, move)
    for low in (False, True):
        loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path, low_cpu_mem_usage=low)
        assert torch.equal(logits(loaded, ids), logits(model, ids))


def test_pools_that_somebody_replaced_in_one_layer_are_not_saved_as_those_of_all(make, tmp_path):
    model = make()
    module = model.get_base_model().model.layers[0].mlp.up_proj.mos_A.module("default")
    module.register_parameter("weight", nn.Parameter(module.weight.detach().clone()))
    model.save_pretrained(tmp_path / "equal")  # the values are the same, so the file is right
    module._parameters["weight"] = nn.Parameter(module.weight.detach() * 2)
    with pytest.raises(ValueError, match="read different pools"):
        model.save_pretrained(tmp_path / "other")


def test_a_block_of_tied_lora_that_was_copied_alone_is_refused_at_load(tiny_llama, tmp_path):
    import copy

    torch.manual_seed(1)
    model = get_peft_model(tiny_llama(), TiedLoraConfig(r=4, init_weights=False))
    layers = model.get_base_model().model.layers
    layers[1] = copy.deepcopy(layers[1])
    layers[1].self_attn.q_proj.tied_lora_A["default"].data.mul_(2)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="are one parameter here, but differ in the file"):
        PeftModel.from_pretrained(tiny_llama(), tmp_path)


def test_scales_that_a_state_dict_brings_are_applied(make, ids):
    scaled = make(MosConfig(r=3, init_weights=False, random_scaling=True))
    plain = make()
    plain.load_state_dict(scaled.state_dict())
    assert torch.equal(logits(plain, ids), logits(scaled, ids))


# Other models.


@pytest.mark.parametrize("targets", [["q_proj", "gate_proj", "up_proj", "down_proj"], ["gate_proj"], ["down_proj"]])
def test_dense_blocks_of_a_mixture_are_exported_right(tmp_path, targets):
    """PEFT takes a LoRA on such names for one on the experts, which are in the other blocks."""

    def base():
        torch.manual_seed(0)
        config = hf.Qwen3MoeConfig(
            **LLAMA_LIKE | {"num_hidden_layers": 4}, **HEADS, **EXPERTS, mlp_only_layers=[0, 1, 2]
        )
        return hf.Qwen3MoeForCausalLM(config).eval()

    torch.manual_seed(1)
    model = get_peft_model(base(), MosConfig(r=2, init_weights=False, target_modules=targets)).eval()
    model.save_pretrained(tmp_path / "mos")
    export_lora(tmp_path / "mos", tmp_path / "lora")
    tokens = torch.arange(32).view(2, 16)
    found = logits(PeftModel.from_pretrained(base(), tmp_path / "lora"), tokens)
    torch.testing.assert_close(found, logits(model, tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lost", [1, 2])
def test_a_second_adapter_on_a_model_that_has_lost_blocks(make, ids, lost):
    """TRL's reference: an adapter with the settings of "default", into which its parameters are copied."""
    model = make(num_hidden_layers=5)
    base = model.get_base_model()
    base.model.layers = nn.ModuleList(list(base.model.layers)[lost:])
    before = logits(model, ids)
    model.add_adapter("ref", model.peft_config["default"])
    model.set_adapter("ref")
    fresh = logits(model, ids)
    assert fresh.isfinite().all() and not torch.equal(fresh, before)
    for name, parameter in list(model.named_parameters()):
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)
    assert torch.equal(logits(model, ids), before)
    assert len({id(layer.mlp.up_proj.mos_A["ref"]) for layer in base.model.layers}) == 1  # still one pool


# Calls.


def block_and_input(make):
    return make().get_base_model().model.layers[1].mlp, torch.randn(2, 32)


def test_one_block_can_be_called_with_other_parameters(make):
    block, x = block_and_input(make)
    twice = {name: 2 * p.detach() for name, p in block.named_parameters() if p.requires_grad}
    found = functional_call(block, twice, (x,))
    for parameter in block.parameters():
        if parameter.requires_grad:
            parameter.data *= 2
    torch.testing.assert_close(found, block(x))


def test_one_block_is_differentiated_by_torch_func(make):
    block, x = block_and_input(make)
    own = {name: p for name, p in block.named_parameters() if p.requires_grad}
    expected = torch.autograd.grad(block(x).sum(), list(own.values()))
    found = grad(lambda p: functional_call(block, p, (x,)).sum())({name: p.detach() for name, p in own.items()})
    for one, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_one_block_is_exported_and_traced(make):
    block, x = block_and_input(make)
    torch.testing.assert_close(torch.export.export(block, (x,)).module()(x), block(x))
    torch.testing.assert_close(torch.jit.trace(block, x)(x), block(x))


@pytest.mark.parametrize("dims", [2, 3, 4])
def test_an_adapted_layer_s_output_may_be_changed_in_place(make, dims):
    layer = make().get_base_model().model.layers[1].mlp.up_proj
    x = torch.randn(*[2] * (dims - 1), 32)
    results = []
    for inplace in (False, True):
        out = nn.ReLU(inplace=inplace)(layer(x))
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), [layer.mos_A["default"]])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("saved", ["products", "all"])
def test_selective_checkpointing(make, ids, saved):
    products = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}

    def policy(context, operation, *args, **kwargs):
        keep = saved == "all" or operation in products
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    expected, model = gradients(make().train(), ids), make().train()
    contexts = partial(create_selective_checkpoint_contexts, policy)
    for block in model.get_base_model().model.layers:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False, context_fn=contexts)
    for one, other in zip(gradients(model, ids), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("config", [MosConfig(r=3, init_weights=False), TiedLoraConfig(r=4, init_weights=False)])
def test_a_hook_that_would_see_parts_of_a_gradient_is_refused(make, ids, config):
    """As of optimizers that step within the backward pass; without reentrance each is called once."""
    model, calls = make(config).train(), []
    model.enable_input_require_grads()
    for parameter in trainable(model):
        parameter.register_post_accumulate_grad_hook(calls.append)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model(ids, labels=ids, use_cache=False).loss.backward()
    assert len(calls) == len(trainable(model))
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    with pytest.raises(RuntimeError, match="reentrant gradient checkpointing a hook"):
        model(ids, labels=ids, use_cache=False).loss.backward()


def test_threads_do_not_share_what_a_forward_pass_leaves(make, ids):
    model = make()
    expected = [gradients(model, row[None]) for row in ids]
    barrier, wrong = threading.Barrier(len(ids)), []
    for block in model.get_base_model().model.layers:  # all threads are in the same block at the same time
        block.register_forward_pre_hook(lambda *_: (barrier.wait(30), None)[1])
    threads = [
        threading.Thread(target=compare, args=(model, row, wanted, wrong))
        for row, wanted in zip(ids, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def compare(model, row, wanted, wrong):
    try:
        found = gradients(model, row[None])
        wrong += [row for one, other in zip(found, wanted, strict=True) if not torch.allclose(one, other, atol=1e-5)]
    except Exception as error:
        wrong.append(error)
