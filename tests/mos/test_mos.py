"""MoS in a model: against the slow reference, parameter counts, and what is particular to shared pools."""

import math

import pytest
import torch
import yaml
from accelerate import init_empty_weights
from peft import PeftModel, convert_to_lora, get_peft_model, get_peft_model_state_dict
from reference import check_indices, layer_groups, module_delta
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from mos import MosConfig

LINEAR = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
PURE = {"r": None, "shards_per_vector": 1, "private_rank": 0, "pair_dissociation": False}
VARIANTS = {
    "mos": {"r": 5, "equivalent_rank": 4},
    "lower rank than budget": {"r": 2, "equivalent_rank": 4},
    "more private": {"r": 4, "equivalent_rank": 3, "private_rank": 2, "shards_per_vector": 2},
    "-sp": {"r": 5, "private_rank": 0},
    "-vs": {"r": 4, "shards_per_vector": 1},
    "-pd": {"r": 4, "pair_dissociation": False},
    "is LoRA": {"r": 2, "private_rank": 2},
    "pure sharing": PURE,
    "random scaling": PURE | {"random_scaling": True, "scale_mean": 0.5},
    "subset selection": PURE | {"r": 3},
}
DEFAULTS = {"shards_per_vector": 4, "equivalent_rank": 2, "private_rank": 1, "pair_dissociation": True}


@pytest.fixture
def mos_model(tiny_llama):
    """A tiny Llama with a non-zero MoS adapter."""

    def build(dtype=torch.float32, base=None, **settings):
        torch.manual_seed(1)
        return get_peft_model(base or tiny_llama(dtype), MosConfig(**{"r": 3, "init_weights": False} | settings)).eval()

    return build


def q_proj(model, block=0):
    return model.get_base_model().model.layers[block].self_attn.q_proj


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_and_gradients_are_those_of_the_slow_reference(agrees_with_reference, tiny_llama, variant):
    base = tiny_llama()

    def delta(state, module):
        return module_delta(base, LINEAR, state, 16, module.removeprefix("base_model.model."))

    agrees_with_reference(MosConfig(init_weights=False, **VARIANTS[variant]), delta)


@pytest.mark.parametrize("variant", VARIANTS)
def test_single_precision_agrees_to_a_millionth(mos_model, tiny_llama, variant):
    """One layer of each width, on inputs and output gradients of size one; relative to the largest value."""
    model = mos_model(**VARIANTS[variant])
    state = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in get_peft_model_state_dict(model).items()}
    base = model.get_base_model()
    plain_model = tiny_llama()
    for names in layer_groups(plain_model, LINEAR).values():
        name, layer = names[1], base.get_submodule(names[1])
        x = torch.randn(6, layer.in_features)
        plain = plain_model.get_submodule(name)
        host = base.get_submodule(names[0])
        weight = plain.weight + module_delta(plain_model, LINEAR, state, 16, name)
        expected, actual = nn.functional.linear(x, weight), layer(x)
        assert (actual - expected).abs().max() <= 1e-6 * expected.abs().max()
        grad = torch.randn_like(expected)
        pools = [state[f"base_model.model.{names[0]}.mos_{side}"] for side in "AB"]
        wanted = torch.autograd.grad(expected, pools, grad)
        got = torch.autograd.grad(actual, [host.mos_A["default"], host.mos_B["default"]], grad)
        for a, b in zip(got, wanted, strict=True):
            assert (a - b).abs().max() <= 1e-6 * b.abs().max()


@pytest.mark.parametrize("variant", [name for name in VARIANTS if "r" in VARIANTS[name] and VARIANTS[name]["r"]])
def test_saved_indices_are_valid(mos_model, tiny_llama, variant):
    settings = DEFAULTS | VARIANTS[variant]
    state = get_peft_model_state_dict(mos_model(**VARIANTS[variant]))
    sizes = settings["equivalent_rank"], settings["shards_per_vector"], settings["private_rank"], settings["r"]
    dissociated = False
    for names in layer_groups(tiny_llama(), LINEAR).values():
        for block, name in enumerate(names):
            index_a, index_b = state[f"base_model.model.{name}.mos_index"]
            check_indices(index_a, block, len(names), *sizes)
            check_indices(index_b, block, len(names), *sizes)
            dissociated |= not torch.equal(index_a, index_b)
    assert dissociated == (settings["pair_dissociation"] and settings["r"] > settings["private_rank"])


def test_random_scales(mos_model):
    model = mos_model(**PURE | {"random_scaling": True, "scale_mean": 2.0, "scale_std": 0.1, "equivalent_rank": 8})
    scales = torch.stack([q_proj(model, block).mos_scale["default"] for block in range(3)])  # (L, e*L)
    assert scales.shape == (3, 24)
    assert not torch.equal(scales[0], scales[1])
    assert abs(scales.mean() - 2) < 0.05
    assert 0.07 < scales.std() < 0.13
    assert not any(name.endswith("scale") for name, _ in model.named_parameters())


def test_init(tiny_llama, mos_model, ids):
    torch.manual_seed(0)
    model = get_peft_model(tiny_llama(hidden_size=64), MosConfig(equivalent_rank=4))
    assert torch.equal(model(ids).logits, tiny_llama(hidden_size=64)(ids).logits)
    pool = q_proj(model).mos_A["default"]
    assert pool.shape == (4 * 3 * 4, 64 // 4)
    assert 0.98 / math.sqrt(64) < pool.abs().max() <= 1 / math.sqrt(64)
    assert abs(pool.std() * math.sqrt(3 * 64) - 1) < 0.05  # uniform
    assert not q_proj(model).mos_B["default"].any()
    assert q_proj(mos_model()).mos_B["default"].any()


@pytest.mark.parametrize(
    ("model", "settings", "expected"),
    [
        *[("llama2_7b", {"r": 8} | extra, 4_997_120) for extra in ({}, {"r": 4}, PURE, PURE | {"r": 32})],
        ("llama2_7b", {"random_scaling": True} | PURE, 4_997_120),
        *[
            ("llama2_7b", {"equivalent_rank": 8, "r": 16} | extra, 19_988_480)
            for extra in ({}, {"r": 32}, {"private_rank": 0}, {"shards_per_vector": 1}, {"pair_dissociation": False})
        ],
        ("llama2_13b", {"equivalent_rank": 2, "r": 8}, 7_823_360),
    ],
)  # fmt: skip
def test_parameter_counts_of_the_paper(pytestconfig, model, settings, expected):
    path = pytestconfig.rootpath / f"configs/model/{model}.yaml"
    with init_empty_weights():
        base = LlamaForCausalLM(LlamaConfig(**yaml.safe_load(path.read_text())["architecture"]))
        peft_model = get_peft_model(base, MosConfig(**settings))
    assert peft_model.get_nb_trainable_parameters()[0] == expected


def test_file_size(tmp_path):
    """LLaMA2-7B's blocks: within 1% of two bytes per parameter, all indices included (l = 4, r = 16, e = 8)."""
    shapes = LlamaConfig(vocab_size=8, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
    with init_empty_weights():
        base = LlamaForCausalLM(shapes)
    with init_empty_weights(include_buffers=False):
        model = get_peft_model(base, MosConfig(r=16, equivalent_rank=8))
    state = get_peft_model_state_dict(model)
    data = sum(v.numel() * (2 if v.is_floating_point() else v.element_size()) for v in state.values())
    header = sum(
        len(f'"{k}":{{"dtype":"BF16","shape":[1024,1024],"data_offsets":[39000000,39000000]}},') for k in state
    )
    assert 0 < (data + header) / (2 * 19_988_480) - 1 < 0.01


def test_each_tensor_is_saved_once(mos_model, tmp_path):
    model = mos_model()
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "adapter_model.safetensors")
    hosted = sorted(name.rpartition(".mos_")[0] for name in state if name.endswith("mos_A"))
    assert len(hosted) == 7
    assert all(".layers.0." in name for name in hosted)
    assert (
        sum(v.numel() for k, v in state.items() if k.endswith(("mos_A", "mos_B")))
        == (model.get_nb_trainable_parameters()[0])
    )
    assert {v.dtype for k, v in state.items() if k.endswith("mos_index")} == {torch.int16}


def test_the_file_wins_over_the_seed(mos_model, tiny_llama, ids, tmp_path):
    model = mos_model(index_seed=3, **PURE | {"r": 4, "random_scaling": True})
    expected = model(ids).logits
    model.save_pretrained(tmp_path)
    config = MosConfig.from_pretrained(tmp_path)
    config.index_seed = 4
    assert torch.equal(PeftModel.from_pretrained(tiny_llama(), tmp_path, config=config)(ids).logits, expected)


def test_indices_depend_on_the_seed_alone(mos_model, tiny_llama):
    def indices(**settings):
        return {k: v for k, v in get_peft_model_state_dict(mos_model(**settings)).items() if k.endswith("index")}

    first = indices()
    torch.manual_seed(5)
    assert all(torch.equal(first[k], v) for k, v in indices().items())
    for name, index in indices(target_modules=["v_proj", "q_proj"]).items():
        assert torch.equal(first[name], index)  # other layers do not shift the draws
    assert any(not torch.equal(first[k], v) for k, v in indices(index_seed=1).items())


def test_drawing_indices_leaves_the_global_generator_alone(tiny_llama):
    states = []
    for seed in (0, 1):
        torch.manual_seed(0)
        get_peft_model(tiny_llama(), MosConfig(index_seed=seed, r=3, random_scaling=bool(seed)))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize(("blocks", "host"), [([1, 2], 1), ([0], 0), (0, 0), ([2, 0], 0)])
def test_layers_to_transform(tiny_llama, ids, blocks, host):
    settings = {"r": 2, "init_weights": False, "layers_to_transform": blocks, "target_modules": ["q_proj", "v_proj"]}
    model = get_peft_model(tiny_llama(), MosConfig(**settings))
    count = 1 if isinstance(blocks, int) else len(blocks)
    hosts = [name for name, _ in model.named_parameters() if "mos_A" in name]
    assert len(hosts) == 2
    assert all(f".layers.{host}." in name for name in hosts)
    assert q_proj(model, host).mos_A["default"].shape == (2 * count * 4, 8)
    assert not torch.allclose(model(ids).logits, tiny_llama()(ids).logits)


def test_same_path_with_two_widths_has_two_pools(ids):
    base = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 12))
    model = get_peft_model(base, MosConfig(r=2, target_modules=["0", "1", "2"], shards_per_vector=2))
    assert [name.split(".")[2] for name, _ in model.named_parameters() if "mos_A" in name] == ["0", "1"]
    assert model(torch.randn(3, 8)).shape == (3, 12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shards_per_vector": 3, "r": 2}, r"does not divide in_features=32 of 'model.layers.\*.self_attn.q_proj'"),
        ({"r": 8}, r"r=8 needs 28 .* over 3 block\(s\) give 12. Use r <= 4"),
    ],
)
def test_impossible_sizes_change_nothing(tiny_llama, settings, message):
    base = tiny_llama()
    before = [type(module) for module in base.modules()]
    with pytest.raises(ValueError, match=message):
        get_peft_model(base, MosConfig(**settings))
    assert [type(module) for module in base.modules()] == before


def test_failed_second_adapter_leaves_the_first(mos_model, ids):
    model = mos_model()
    expected = model(ids).logits
    with pytest.raises(ValueError, match="needs 28"):
        model.add_adapter("second", MosConfig(r=8))
    assert list(model.peft_config) == ["default"]
    assert torch.equal(model(ids).logits, expected)


def test_adapters_of_other_shapes_and_blocks(mos_model, tiny_llama, ids, tmp_path):
    model = mos_model(layers_to_transform=[1, 2])
    other = MosConfig(r=4, equivalent_rank=3, shards_per_vector=2, private_rank=0, init_weights=False, index_seed=9)
    model.add_adapter("other", other)
    first = model(ids).logits
    model.set_adapter("other")
    second = model(ids).logits
    assert not torch.allclose(first, second)
    model.save_pretrained(tmp_path)
    for folder, expected in ((tmp_path, first), (tmp_path / "other", second)):
        torch.testing.assert_close(PeftModel.from_pretrained(tiny_llama(), folder)(ids).logits, expected)
    model.delete_adapter("default")
    torch.testing.assert_close(model(ids).logits, second)
    assert not any("default" in getattr(m, n) for m in model.modules() for n in getattr(m, "other_param_names", ()))


def test_nan_in_a_shard_that_no_block_selected(mos_model):
    model = mos_model(r=2, equivalent_rank=4, private_rank=0, target_modules=["q_proj"])
    used = {int(i) for block in range(3) for i in q_proj(model, block).mos_index["default"][0].flatten()}
    [unused, *_] = set(range(4 * 3 * 4)) - used
    q_proj(model).mos_A["default"].data[unused] = math.nan
    model.merge_adapter()
    model.unmerge_adapter()
    with pytest.raises(ValueError, match="NaNs detected in the merged weights"):
        model.merge_and_unload(safe_merge=True)


def test_convert_to_lora(mos_model, tiny_llama, ids):
    model = mos_model()
    lora_config, state = convert_to_lora(model, rank=3)
    lora = get_peft_model(tiny_llama(), lora_config).eval()
    lora.load_state_dict({k.replace(".weight", ".default.weight"): v for k, v in state.items()}, strict=False)
    torch.testing.assert_close(lora(ids).logits, model(ids).logits, rtol=1e-3, atol=1e-4)


def test_modules_to_save_and_all_linear(tiny_llama, ids, tmp_path):
    config = MosConfig(r=3, target_modules="all-linear", modules_to_save=["lm_head"], init_weights=False)
    model = get_peft_model(tiny_llama(), config).eval()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert sum("modules_to_save" in name for name in trained) == 1
    assert sum("mos_" in name for name in trained) == 14
    model.save_pretrained(tmp_path)
    assert torch.equal(PeftModel.from_pretrained(tiny_llama(), tmp_path)(ids).logits, model(ids).logits)


@torch.no_grad()
def rebuild_parameter(layer):
    layer.mos_A["default"] = nn.Parameter(layer.mos_A["default"] * 2)


CHANGES = {
    "in place": lambda layer: layer.mos_A["default"].detach().mul_(2),
    "data": lambda layer: setattr(layer.mos_A["default"], "data", layer.mos_A["default"].data * 2),
    "parameter": rebuild_parameter,
    "load": lambda layer: layer.load_state_dict({"mos_B.default.weight": layer.mos_B["default"] * 2}, strict=False),
    "indices": lambda layer: layer.mos_index["default"].copy_(layer.mos_index["default"].flip(0)),
    "type": lambda layer: layer.double(),
    "scaling": lambda layer: layer.scaling.update(default=1.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_uses_what_it_has(mos_model, change):
    layer = q_proj(mos_model())
    x = torch.randn(4, 32)
    with torch.no_grad():
        before = layer(x)
        CHANGES[change](layer)
        x = x.to(layer.base_layer.weight.dtype)
        expected = nn.functional.linear(x, layer.base_layer.weight + layer.get_delta_weight("default"))
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
        assert change == "type" or not torch.allclose(before, layer(x))


def test_training_step_after_evaluation(mos_model, ids):
    """The optimizer's step reaches the next evaluation."""
    model = mos_model()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    with torch.no_grad():
        before = model(ids, labels=ids).loss
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    with torch.no_grad():
        assert model(ids, labels=ids).loss < before - 0.01


def test_inference_mode(mos_model, ids):
    model = mos_model()
    expected = model(ids).logits
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, expected)
        loaded = mos_model()
        assert torch.equal(loaded(ids).logits, expected)
    model(ids, labels=ids).loss.backward()  # what was assembled above does not get in the way


def test_autocast_runs_in_its_type_and_keeps_float32_pools(mos_model, ids):
    model = mos_model()
    with torch.autocast("cpu", torch.bfloat16):
        trained = model.train()(ids, labels=ids)
        assert q_proj(model)(torch.randn(2, 32)).dtype == torch.bfloat16
    trained.loss.backward()
    assert {p.grad.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    torch.testing.assert_close(trained.logits, model.eval()(ids).logits, rtol=0.1, atol=0.05, check_dtype=False)


def test_layer_status(mos_model):
    status = mos_model().get_model_status()
    assert status.available_adapters == ["default"]
    assert status.num_adapter_layers == 21


def test_construction_is_linear_in_blocks():
    """80 blocks of LLaMA2-70B shapes on the meta device; a second costs what it costs, the count must be LoRA's."""
    shapes = LlamaConfig(
        vocab_size=8,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    )
    with init_empty_weights():
        model = get_peft_model(LlamaForCausalLM(shapes), MosConfig(r=16, equivalent_rank=8))
    per_block = 2 * (8192 + 8192) + 2 * (8192 + 1024) + 3 * (8192 + 28672)
    assert model.get_nb_trainable_parameters()[0] == 8 * 80 * per_block
