"""What PEFT asks of every method beyond the other tests here: targets, biases, files, adapters coming and going."""

import pytest
import torch
from peft import PeftModel, get_peft_model, get_peft_model_state_dict
from torch import nn

from mos import MosConfig, MosLayer

SETTINGS = {"r": 3, "init_weights": False}


@pytest.fixture
def adapted(tiny_llama):
    def build(base=None, **settings):
        torch.manual_seed(1)
        return get_peft_model(base or tiny_llama(), MosConfig(**SETTINGS | settings)).eval()

    return build


def targets(model):
    return {
        name.removeprefix("base_model.model.model.") for name, m in model.named_modules() if isinstance(m, MosLayer)
    }


def named(*names, blocks=range(3)):
    return {f"layers.{block}.{name}" for block in blocks for name in names}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"target_modules": r".*\.(q|v)_proj"}, named("self_attn.q_proj", "self_attn.v_proj")),
        ({"target_modules": ["q_proj", "mlp.up_proj"]}, named("self_attn.q_proj", "mlp.up_proj")),
        ({"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj"]}, named("self_attn.q_proj")),
        (
            {"target_modules": ["v_proj"], "exclude_modules": r".*\.0\..*", "r": 2},
            named("self_attn.v_proj", blocks=(1, 2)),
        ),
        ({"target_modules": ["q_proj", "k_proj"], "modules_to_save": ["k_proj"]}, named("self_attn.q_proj")),
        (
            {"target_modules": ["q_proj"], "layers_to_transform": [0, 2], "layers_pattern": "layers"},
            named("self_attn.q_proj", blocks=(0, 2)),
        ),
    ],
)
def test_targets(adapted, ids, settings, expected):
    model = adapted(**settings)
    assert targets(model) == expected
    assert model(ids).logits.isfinite().all()


def test_no_targets_for_an_unknown_architecture():
    with pytest.raises(ValueError, match="target_modules"):
        get_peft_model(nn.Sequential(nn.Linear(8, 8)), MosConfig(r=2))


def test_targets_that_match_nothing(tiny_llama):
    with pytest.raises(ValueError, match="nowhere"):
        get_peft_model(tiny_llama(), MosConfig(r=3, target_modules=["nowhere"]))


def test_biases(tiny_llama, adapted, ids, tmp_path):
    """Those of the adapted layers train and are saved; a second adapter with biases is refused, as for LoRA."""
    biased = {"attention_bias": True}
    model = adapted(tiny_llama(**biased), bias="mos_only", target_modules=["q_proj", "v_proj"])
    trained = {name for name, p in model.named_parameters() if p.requires_grad and name.endswith("bias")}
    assert trained == {
        f"base_model.model.model.layers.{block}.self_attn.{name}.base_layer.bias"
        for block in range(3)
        for name in ("q_proj", "v_proj")
    }
    for name in trained:
        model.get_parameter(name).data += 0.3
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(**biased), tmp_path)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    with pytest.raises(ValueError, match="supports only 1 adapter with bias"):
        model.add_adapter("second", MosConfig(bias="all", **SETTINGS))


def test_pickled_file_and_selected_adapters(adapted, tiny_llama, ids, tmp_path):
    model = adapted()
    model.add_adapter("second", MosConfig(index_seed=1, **SETTINGS))
    model.set_adapter("second")
    model.save_pretrained(tmp_path, safe_serialization=False, selected_adapters=["second"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "second"]
    assert (tmp_path / "second" / "adapter_model.bin").is_file()
    assert torch.equal(PeftModel.from_pretrained(tiny_llama(), tmp_path / "second")(ids).logits, model(ids).logits)


def test_adapters_on_disjoint_layers(adapted, tiny_llama, ids):
    """Each acts where it is present; merged and in mixed batches too."""
    model = adapted(target_modules=["q_proj"])
    model.add_adapter("second", MosConfig(target_modules=["v_proj"], **SETTINGS))
    first = model(ids).logits
    model.set_adapter("second")
    second = model(ids).logits
    mixed = model(ids[:2], adapter_names=["second", "default"]).logits
    torch.testing.assert_close(mixed, torch.cat([second[:1], first[1:2]]))
    model.merge_adapter(["default"])  # leaves the layers alone that only the active adapter is on
    merged = model(ids).logits
    model.unmerge_adapter()
    torch.testing.assert_close(model(ids).logits, second)
    model.base_model.set_adapter(["default", "second"])
    torch.testing.assert_close(model(ids).logits, merged)


@pytest.mark.parametrize("order", [["default", "second"], ["second", "default"]])
def test_merging_one_after_the_other(adapted, ids, order):
    model = adapted()
    model.add_adapter("second", MosConfig(index_seed=1, **SETTINGS))
    model.base_model.set_adapter(["default", "second"])
    both = model(ids).logits
    for name in order:
        model.merge_adapter([name])
    with pytest.warns(UserWarning, match="already merged|All adapters are already merged"):
        model.merge_adapter(order)
    torch.testing.assert_close(model(ids).logits, both)
    model.unmerge_adapter()
    torch.testing.assert_close(model(ids).logits, both)
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()


def test_merging_while_training_has_no_dropout(adapted, ids):
    model = adapted(dropout=0.9)
    expected = model(ids).logits
    model.train().merge_adapter()
    torch.testing.assert_close(model.eval()(ids).logits, expected)


def test_deleting(adapted, tiny_llama, ids):
    model = adapted()
    model.add_adapter("second", MosConfig(index_seed=1, **SETTINGS))
    expected = model(ids).logits
    model.delete_adapter("second")  # not active
    assert torch.equal(model(ids).logits, expected)
    with pytest.raises(ValueError, match="ghost"):
        model.delete_adapter("ghost")
    model.add_adapter("second", MosConfig(index_seed=2, **SETTINGS))
    model.delete_adapter("default")  # active
    assert not any("default" in name for name in model.state_dict())
    assert {name for m in model.modules() if isinstance(m, MosLayer) for name in m.collectors} == {"second"}


def test_half_precision_casts_leave_the_indices_alone(adapted, ids):
    model = adapted()
    index = {name: b.clone() for name, b in model.named_buffers() if "mos_index" in name}
    expected = model(ids).logits
    for dtype in (torch.bfloat16, torch.float16):
        logits = model.to(dtype)(ids).logits
        assert logits.dtype == dtype
        torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.05)
    assert all(torch.equal(b, index[name]) for name, b in model.named_buffers() if name in index)
    assert len(index) == 21


def test_generates_from_embeddings_in_half_precision(adapted, ids):
    model = adapted().bfloat16()
    embeddings = model.get_input_embeddings()(ids)
    settings = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    assert model.generate(inputs_embeds=embeddings, **settings).shape == (3, 3)
    assert model.generate(ids, **settings).shape == (3, 11)


def trained(model):
    return {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}


def test_freezing_and_thawing(adapted):
    model = adapted()
    model.add_adapter("second", MosConfig(index_seed=1, **SETTINGS))
    model.set_requires_grad("second")
    assert trained(model) == {"default", "second"}
    model.set_requires_grad("default", requires_grad=False)
    assert trained(model) == {"second"}


def test_the_order_of_modules_changes_neither_pools_nor_indices(adapted, tiny_llama):
    base = tiny_llama()
    base.model.layers[0].self_attn._modules = dict(reversed(base.model.layers[0].self_attn._modules.items()))
    states = [get_peft_model_state_dict(adapted(each)) for each in (base, tiny_llama())]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert not name.endswith("mos_index") or torch.equal(value, states[1][name]), name


def test_every_layer_has_its_indices_and_only_hosts_have_pools(adapted):
    """What is counted per block, as in PEFT's layer indexing tests."""
    keys = get_peft_model_state_dict(adapted(layers_to_transform=[1, 2]))
    counts = {block: sum(f".layers.{block}." in key for key in keys) for block in range(3)}
    assert counts == {0: 0, 1: 7 * 4, 2: 7 * 2}


@torch.no_grad()
def test_a_quantized_base_has_a_backend_and_the_same_update(tiny_llama_4bit):
    layer = (
        get_peft_model(tiny_llama_4bit().train(), MosConfig(**SETTINGS)).get_base_model().model.layers[0].mlp.up_proj
    )
    assert (layer.in_features, layer.out_features) == (64, 128)
    assert layer.quantization_backend is not None
    assert "backend" in repr(layer)
    x = torch.randn(4, 64)
    update = layer(x) - layer.base_layer(x)
    torch.testing.assert_close(update, x @ layer.get_delta_weight("default").T, rtol=1e-4, atol=1e-5)
