"""What every method must do, whatever its factors."""

import copy
import warnings

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model, inject_adapter_in_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from mos import MosConfig, export_lora
from mos.prolora import ProloraConfig
from mos.tied_lora import TiedLoraConfig

METHODS = {
    "mos": lambda **settings: MosConfig(**{"r": 3, "init_weights": False} | settings),
    "prolora": lambda **settings: ProloraConfig(**{"r": 4, "unshared_rank": 1, "init_weights": False} | settings),
    "tied_lora": lambda **settings: TiedLoraConfig(**{"r": 6, "init_weights": False} | settings),
}


@pytest.fixture(params=METHODS)
def config(request):
    """Builds the method's config; its update is not zero."""
    return METHODS[request.param]


@pytest.fixture
def peft_model(tiny_llama, config):
    return get_peft_model(tiny_llama(), config()).eval()


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


def assert_different(a, b):
    assert (a - b).abs().max() > 1e-4


def test_only_the_adapter_trains_and_it_learns(peft_model, ids):
    trained = {name: p for name, p in peft_model.named_parameters() if p.requires_grad}
    assert all(peft_model.base_model.prefix in name and name.endswith(".default.weight") for name in trained)
    before = {name: p.detach().clone() for name, p in peft_model.named_parameters()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = peft_model(ids, labels=ids).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.05
    changed = {name for name, p in peft_model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == trained.keys()


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_save_and_load_under_any_name(peft_model, tiny_llama, ids, tmp_path, low_cpu_mem_usage):
    peft_model.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = PeftModel.from_pretrained(
            tiny_llama(), tmp_path, adapter_name="other", low_cpu_mem_usage=low_cpu_mem_usage
        )
    assert torch.equal(loaded(ids).logits, peft_model(ids).logits)
    assert not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_file_replaces_an_adapter_of_other_values(peft_model, tiny_llama, config, ids, tmp_path, low_cpu_mem_usage):
    peft_model.save_pretrained(tmp_path)
    base = tiny_llama()
    torch.manual_seed(7)  # after the base's, to draw other values
    other = get_peft_model(base, config()).eval()
    assert_different(other(ids).logits, peft_model(ids).logits)
    for _ in range(2):
        other.load_adapter(tmp_path, "default", low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(other(ids).logits, peft_model(ids).logits)
    other.save_pretrained(tmp_path / "again")  # what layers share is one parameter as before
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "again")
    assert torch.equal(loaded(ids).logits, peft_model(ids).logits)


def test_transformers_loads_it(peft_model, tiny_llama, ids, tmp_path):
    peft_model.save_pretrained(tmp_path)
    loaded = tiny_llama()
    loaded.load_adapter(str(tmp_path))
    assert_same(loaded(ids).logits, peft_model(ids).logits)


def test_direct_injection(tiny_llama, config, ids):
    base = tiny_llama()
    before = base(ids).logits
    assert_different(inject_adapter_in_model(config(), base)(ids).logits, before)


def test_config_survives_its_file(config, tmp_path):
    config(target_modules=["q_proj", "v_proj"], layers_to_transform=[0, 2]).save_pretrained(tmp_path)
    assert PeftConfig.from_pretrained(tmp_path) == config(
        target_modules=["q_proj", "v_proj"], layers_to_transform=[0, 2]
    )


def test_deep_copy_is_independent(peft_model, ids):
    duplicate = copy.deepcopy(peft_model)
    expected = peft_model(ids).logits
    assert torch.equal(duplicate(ids).logits, expected)
    for parameter in peft_model.parameters():
        parameter.data.zero_()
    assert torch.equal(duplicate(ids).logits, expected)


@pytest.mark.parametrize("safe", [False, True])
def test_merge_unmerge_unload(peft_model, tiny_llama, ids, safe):
    expected, base = peft_model(ids).logits, tiny_llama()(ids).logits
    peft_model.merge_adapter(safe_merge=safe)
    assert_same(peft_model(ids).logits, expected)
    peft_model.unmerge_adapter()
    assert_same(peft_model(ids).logits, expected)
    merged = peft_model.merge_and_unload(safe_merge=safe)
    assert_same(merged(ids).logits, expected)
    assert_different(merged(ids).logits, base)
    assert merged.state_dict().keys() == tiny_llama().state_dict().keys()


def test_safe_merge_refuses_nan_and_keeps_the_base(peft_model, tiny_llama, ids):
    for name, parameter in peft_model.named_parameters():
        if parameter.requires_grad and name.endswith("_B.default.weight"):
            parameter.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaNs detected in the merged weights"):
        peft_model.merge_adapter(safe_merge=True)
    assert_same(peft_model.unload()(ids).logits, tiny_llama()(ids).logits)


def test_merge_into_half_precision(tiny_llama, config, ids):
    model = get_peft_model(tiny_llama(torch.bfloat16), config())
    expected = model(ids).logits
    merged = model.merge_and_unload()
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(merged(ids).logits, expected, rtol=0.1, atol=0.03)


def test_export_is_the_same_adapter(tiny_llama, config, ids, tmp_path):
    model = get_peft_model(tiny_llama(), config(target_modules=["k_proj", "v_proj"], layers_to_transform=[1, 2])).eval()
    expected = model(ids).logits
    model.save_pretrained(tmp_path / "own")
    export_lora(tmp_path / "own", tmp_path / "lora")
    lora = PeftModel.from_pretrained(tiny_llama(), tmp_path / "lora")
    assert lora.peft_config["default"].peft_type == "LORA"
    assert_same(lora(ids).logits, expected)
    assert_same(model.merge_and_unload()(ids).logits, expected)


def test_disabled_is_the_base(peft_model, tiny_llama, ids):
    expected, base = peft_model(ids).logits, tiny_llama()(ids).logits
    with peft_model.disable_adapter():
        assert_same(peft_model(ids).logits, base)
    assert_same(peft_model(ids).logits, expected)
    peft_model.merge_adapter()
    with peft_model.disable_adapter():
        assert_same(peft_model(ids).logits, base)


def test_several_adapters(peft_model, tiny_llama, config, ids):
    first = peft_model(ids).logits
    peft_model.add_adapter("second", config(r=3))
    assert_same(peft_model(ids).logits, first)
    peft_model.set_adapter("second")
    second = peft_model(ids).logits
    peft_model.base_model.set_adapter(["default", "second"])
    both = peft_model(ids).logits
    for other in (first, second, tiny_llama()(ids).logits):
        assert_different(both, other)
    assert_same(copy.deepcopy(peft_model).merge_and_unload()(ids).logits, both)
    peft_model.delete_adapter("default")
    assert_same(peft_model(ids).logits, second)
    assert not [name for name in peft_model.state_dict() if "default" in name]


def test_second_adapter_leaves_the_first_trainable(peft_model, config):
    trained = {name for name, p in peft_model.named_parameters() if p.requires_grad}
    peft_model.add_adapter("second", config())
    assert {name for name, p in peft_model.named_parameters() if p.requires_grad} == trained
    peft_model.set_adapter("second")
    second = {name for name, p in peft_model.named_parameters() if p.requires_grad}
    assert second == {name.replace(".default", ".second") for name in trained}


def test_mixed_batch(peft_model, tiny_llama, config, ids):
    peft_model.add_adapter("second", config(r=3, target_modules=["q_proj", "v_proj"]))
    expected = [peft_model(ids[:1]).logits, tiny_llama()(ids[1:2]).logits]
    peft_model.set_adapter("second")
    expected.append(peft_model(ids[2:]).logits)
    mixed = peft_model(ids, adapter_names=["default", "__base__", "second"]).logits
    assert_same(mixed, torch.cat(expected))
    assert_same(peft_model(ids[2:]).logits, expected[2])  # the names are forgotten afterwards


@pytest.mark.parametrize("beams", [1, 2])
def test_mixed_batch_generates(peft_model, ids, beams):
    settings = {"max_new_tokens": 5, "num_beams": beams, "do_sample": False, "pad_token_id": 0}
    mixed = peft_model.generate(input_ids=ids[:2], adapter_names=["__base__", "default"], **settings)
    own = peft_model.generate(input_ids=ids[1:2], **settings)
    with peft_model.disable_adapter():
        base = peft_model.generate(input_ids=ids[:1], **settings)
    assert mixed.tolist() == [*base.tolist(), *own.tolist()]


def test_mixed_batch_errors(peft_model, ids):
    with pytest.raises(ValueError, match="Length of `adapter_names` should be the same"):
        peft_model(ids, adapter_names=["default"])
    with pytest.raises(ValueError, match=r"non-existing adapter\(s\): ghost"):
        peft_model(ids, adapter_names=["default", "ghost", "default"])
    with pytest.raises(ValueError, match="training mode"):
        peft_model.train()(ids, adapter_names=["default"] * 3)
    peft_model.eval().merge_adapter()
    with pytest.raises(ValueError, match="merged adapters"):
        peft_model(ids, adapter_names=["default"] * 3)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_keeps_gradients(tiny_llama, config, ids, use_reentrant):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = get_peft_model(tiny_llama(), config())
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model.train()(ids, labels=ids).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)


def test_dropout_acts_while_training_only(tiny_llama, config, ids):
    model = get_peft_model(tiny_llama(), config(dropout=0.5)).eval()
    assert torch.equal(model(ids).logits, model(ids).logits)
    model.train()
    assert_different(model(ids).logits, model(ids).logits)


def test_adapter_is_float32_on_a_half_precision_base(tiny_llama, config, ids):
    model = get_peft_model(tiny_llama(torch.bfloat16), config())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert model(ids).logits.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels=ids).loss
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


def test_4bit_base(tiny_llama_4bit, tiny_llama, config, ids, tmp_path):
    base = tiny_llama_4bit().train()  # in eval mode the CPU kernel packs the weights and rounds them further
    before = base(ids).logits
    model = get_peft_model(base, config())
    expected = model(ids).logits
    assert_different(expected, before)
    model(ids, labels=ids).loss.backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)

    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(tiny_llama_4bit(), tmp_path / "adapter").train()
    assert_same(loaded(ids).logits, expected)

    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    weight = layer.get_base_weight() + layer.get_delta_weight("default")
    model.merge_adapter()  # quantizes the sum anew: as close as NF4 gets
    assert (layer.get_base_weight() - weight).abs().max() < 0.2 * weight.abs().max()
    assert_different(model(ids).logits, before)


def test_conv1d_layers(config, ids):
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2)).eval()
    model = get_peft_model(base, config(target_modules=["c_attn"]))
    expected = model(ids).logits
    assert_same(model.merge_and_unload()(ids).logits, expected)


def test_only_linear_layers_can_be_targeted(tiny_llama, config):
    model = tiny_llama()
    with pytest.raises(ValueError, match="is a Embedding; only linear layers"):
        get_peft_model(model, config(target_modules=["embed_tokens"]))
    assert isinstance(model.model.embed_tokens, nn.Embedding)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": -0.1}, r"dropout=-0.1 must be in \[0, 1\)"),
        ({"layers_pattern": "layers"}, "needs layers_to_transform"),
        ({"target_modules": ".*q_proj", "layers_to_transform": [0]}, "give target_modules as a list"),
    ],
)
def test_contradictory_settings_are_refused(config, settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_repr_names_the_method(peft_model):
    assert f"{peft_model.base_model.prefix[:-1]}." in repr(peft_model)
