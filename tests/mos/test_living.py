"""Pools outlive their blocks: what happens to one block loses no pool that another one reads."""

import copy
import re

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn

from mos import MosConfig, MosLayer, TiedLoraConfig, export_lora


@pytest.fixture
def adapted(tiny_llama):
    def build(config=None):
        torch.manual_seed(1)
        return get_peft_model(tiny_llama(), config or MosConfig(r=3, init_weights=False)).eval()

    return build


def blocks(model):
    return model.get_base_model().model.layers


def set_blocks(model, modules):
    model.get_base_model().model.layers = nn.ModuleList(modules)
    model.get_base_model().config.num_hidden_layers = len(modules)


def remove(model):
    set_blocks(model, list(blocks(model))[1:])


def remove_two(model):
    set_blocks(model, list(blocks(model))[2:])


def replace(model):
    torch.manual_seed(7)
    plain = type(blocks(model)[0])(model.get_base_model().config, layer_idx=0).eval()
    set_blocks(model, [plain.requires_grad_(False), *list(blocks(model))[1:]])


def reorder(model):
    set_blocks(model, list(blocks(model))[::-1])


def repeat(model):
    """The same block twice, as looped transformers have it."""
    set_blocks(model, [*blocks(model), blocks(model)[0]])


def skip(model):
    """Block 0 does nothing any more."""

    class Skipped(nn.Module):
        def forward(self, hidden_states, *args, **kwargs):
            return hidden_states

    set_blocks(model, [Skipped(), *list(blocks(model))[1:]])


def unload_layers(model):
    """The layers of block 0 that were adapted are plain again."""
    for parent in (blocks(model)[0].self_attn, blocks(model)[0].mlp):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, MosLayer):
                setattr(parent, name, layer.base_layer)


def cast_one(model):
    blocks(model)[0].double().float()


def swap_copies(model):
    """All blocks are copies, made together: they share what their originals share."""
    set_blocks(model, copy.deepcopy(list(blocks(model))))


CHANGES = (remove, remove_two, replace, reorder, repeat, skip, unload_layers, cast_one, swap_copies)


def change_base(change, base):
    """Make of a plain base what `change` makes of the adapted one."""
    if change in (remove, remove_two, reorder, skip, replace, repeat):
        wrapper = type("", (), {"get_base_model": lambda self: base})()
        change(wrapper)
    return base


@pytest.mark.parametrize("change", CHANGES)
def test_training_reaches_what_living_blocks_read(adapted, ids, change):
    model = adapted()
    change(model)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 14  # one pair of pools per layer type, once
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    model.train()(ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in trained.items())
    held = {id(p) for layer in model.modules() if isinstance(layer, MosLayer) for p in layer.mos_A.values()}
    assert held <= {id(p) for p in trained.values()}


@pytest.mark.parametrize("change", CHANGES)
def test_merging_after_it(adapted, ids, change):
    model = adapted()
    change(model)
    expected = model(ids, use_cache=False).logits
    torch.testing.assert_close(model.merge_and_unload()(ids, use_cache=False).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [remove, reorder, cast_one, swap_copies])
def test_saving_loading_and_exporting_after_it(adapted, tiny_llama, ids, tmp_path, change):
    model = adapted()
    change(model)
    expected = model(ids, use_cache=False).logits
    model.save_pretrained(tmp_path / "own")
    export_lora(tmp_path / "own", tmp_path / "lora")
    for folder in ("own", "lora"):
        loaded = PeftModel.from_pretrained(change_base(change, tiny_llama()), tmp_path / folder)
        torch.testing.assert_close(loaded(ids, use_cache=False).logits, expected, rtol=1e-4, atol=1e-5, msg=folder)
        assert not loaded.training


def test_a_single_block_left_is_exported_but_has_too_few_shards_for_a_new_adapter(adapted, tiny_llama, ids, tmp_path):
    model = adapted()
    remove_two(model)
    expected = model(ids, use_cache=False).logits
    model.save_pretrained(tmp_path / "own")
    export_lora(tmp_path / "own", tmp_path / "lora")
    lora = PeftModel.from_pretrained(change_base(remove_two, tiny_llama()), tmp_path / "lora")
    torch.testing.assert_close(lora(ids, use_cache=False).logits, expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"over 1 block\(s\) give 4. Use r <= 2"):
        PeftModel.from_pretrained(change_base(remove_two, tiny_llama()), tmp_path / "own")


@pytest.mark.parametrize("change", [replace, skip, unload_layers])
def test_a_layer_that_the_file_does_not_know_is_named(adapted, tiny_llama, ids, tmp_path, change):
    """Instead of reading shards at random; left out by the settings, it loads."""
    model = adapted()
    change(model)
    expected = model(ids, use_cache=False).logits
    model.save_pretrained(tmp_path / "own")
    with pytest.raises(ValueError, match=r"says nothing of 'base_model.model.model.layers.0.*exclude_modules"):
        PeftModel.from_pretrained(tiny_llama(), tmp_path / "own")
    config = MosConfig.from_pretrained(tmp_path / "own")
    config.exclude_modules = r".*layers\.0\..*"
    loaded = PeftModel.from_pretrained(change_base(change, tiny_llama()), tmp_path / "own", config=config)
    torch.testing.assert_close(loaded(ids, use_cache=False).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_block_copied_alone_has_pools_of_its_own_and_is_not_saved(adapted, ids, tmp_path):
    """It trains and merges like every other; a file holds one pair of pools per type, so saving is refused."""
    model = adapted()
    set_blocks(model, [*blocks(model), copy.deepcopy(blocks(model)[0])])
    assert len([p for p in model.parameters() if p.requires_grad]) == 28
    model(ids, labels=ids, use_cache=False).loss.backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)
    with pytest.raises(ValueError, match=r"'.*layers\.3.*' and '.*layers\.0.*' read different pools.*merge_and_unload"):
        model.save_pretrained(tmp_path)
    expected = model(ids, use_cache=False).logits
    torch.testing.assert_close(model.merge_and_unload()(ids, use_cache=False).logits, expected, rtol=1e-4, atol=1e-5)


def test_one_block_unloaded_to_meta_keeps_the_pools_of_the_others(adapted, ids, tmp_path):
    model = adapted()
    expected = get_peft_model_state_dict(model)
    blocks(model)[0].to("meta")
    state = get_peft_model_state_dict(model)
    for name in ("mos_A", "mos_B"):
        pools = {key: value for key, value in state.items() if key.endswith(name)}
        assert len(pools) == 7
        assert not any(pool.is_meta for pool in pools.values())
        for key, pool in pools.items():
            assert torch.equal(pool, expected[re.sub(r"layers\.\d", "layers.0", key)])
    layer = blocks(model)[1].mlp.up_proj.train()
    layer(torch.ones(2, 32)).sum().backward()
    assert layer.mos_B["default"].grad.abs().max() > 0


def test_moving_into_another_container(adapted, ids):
    """Blocks taken out of the model, as a pipeline's stages are, bring their pools with them."""
    stage = nn.Sequential(*[block.mlp for block in blocks(adapted())[1:]])
    pools = [p for p in stage.parameters() if p.requires_grad]
    assert len(pools) == 6
    stage(torch.ones(2, 32)).sum().backward()
    assert all(p.grad is not None for p in pools)


def test_assigning_a_parameter_to_one_layer_assigns_it_to_all(adapted):
    """As loading with `assign=True` and casting do, and transformers' own loader."""
    model = adapted()
    first, last = blocks(model)[0].mlp.up_proj, blocks(model)[2].mlp.up_proj
    last.mos_A["default"] = nn.Parameter(torch.ones_like(last.mos_A["default"]))
    assert first.mos_A["default"] is last.mos_A["default"]
    first.load_state_dict({"mos_A.default.weight": 2 * first.mos_A["default"].detach()}, strict=False, assign=True)
    assert float(last.mos_A["default"].detach()[0, 0]) == 2
    assert first.mos_A["default"] is last.mos_A["default"]


def test_a_pool_torn_apart_is_not_trained(adapted):
    """Whoever replaces a pool in one block only would train two of them."""
    model = adapted()
    layer = blocks(model)[1].mlp.up_proj
    layer.mos_A.module("default")._parameters["weight"] = nn.Parameter(layer.mos_A["default"].detach().clone())
    with pytest.raises(RuntimeError, match=r"no longer the same for all blocks.*whole model at once"):
        layer(torch.ones(2, 32))


@pytest.mark.parametrize("change", [remove, reorder, replace, unload_layers])
def test_the_shared_factors_of_tied_lora_live_on_too(adapted, ids, change):
    model = adapted(TiedLoraConfig(r=4, init_weights=False))
    if change is unload_layers:
        blocks(model)[0].self_attn.q_proj = blocks(model)[0].self_attn.q_proj.base_layer
    else:
        change(model)
    names = [name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad]
    assert names.count("tied_lora_A") == 1
    assert names.count("tied_lora_B") == 3
    model(ids, labels=ids, use_cache=False).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    expected = model(ids, use_cache=False).logits
    torch.testing.assert_close(model.merge_and_unload()(ids, use_cache=False).logits, expected, rtol=1e-4, atol=1e-5)
