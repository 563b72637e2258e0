"""MoS on expert weights that are one 3D parameter: against the slow reference, LoRA's counts, and LoRA itself."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from reference import check_indices, delta
from tiny_models import VOCABULARY, tiny
from torch import nn

from mos import MosConfig, export_lora

MODELS = ["Mixtral", "Qwen2-MoE", "Qwen3-MoE", "DeepSeek-V3", "gpt-oss"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
IDS = torch.arange(3, 27).view(2, 12) % VOCABULARY
E = 4  # experts of every tiny model
SETTINGS = {"r": 3, "equivalent_rank": 2, "shards_per_vector": 4, "private_rank": 1}
VARIANTS = {
    "mos": {},
    "no private shards, pairs": {"private_rank": 0, "pair_dissociation": False},
    "random scaling": {"random_scaling": True, "scale_mean": 0.5},
}


def adapted(base, targets=EXPERTS, **settings):
    """A MoS adapter on the experts alone; its update is not zero."""
    torch.manual_seed(1)
    settings = SETTINGS | {"init_weights": False, "target_modules": [], "target_parameters": targets} | settings
    return get_peft_model(base, MosConfig(**settings)).eval()


def double(name):
    """In float64, which transformers' fast kernels of mixtures do not take."""
    model = tiny(name).double()
    model.set_experts_implementation("eager")
    return model


def experts(model):
    """The module of the experts of every layer that has them, by name, in order."""
    return {
        name: module
        for name, module in model.named_modules()
        if name.endswith("mlp.experts") and hasattr(module, "down_proj")
    }


def in_file(name, parameter):
    """Where PEFT's nesting puts what belongs to a parameter of the experts `name`: the last wrapper is outermost."""
    return f"base_model.model.{name}" + (".base_layer" if parameter == "gate_up_proj" else "")


def of_expert(state, module, expert):
    """Its two index matrices (r, l) and its scales (r,): a file has those of all experts, one after the other."""
    rows = slice(expert * SETTINGS["r"], (expert + 1) * SETTINGS["r"])
    index_a, index_b = state[f"{module}.mos_index"][:, rows]
    return index_a, index_b, state[f"{module}.mos_scale"][rows]


def reference_weights(base, state):
    """The expert weights with their updates, written out in loops; `state`: the tensors of the adapter's file."""
    weights = {}
    layers = experts(base)
    for parameter in ("gate_up_proj", "down_proj"):
        pools = [state[f"{in_file(next(iter(layers)), parameter)}.mos_{side}"] for side in "AB"]
        for name, module in layers.items():
            own = in_file(name, parameter)
            updates = []
            for expert in range(E):
                index_a, index_b, scale = of_expert(state, own, expert)
                update = delta(*pools, index_a, index_b, scale, 16)  # (o, h)
                updates.append(update.T if getattr(module, "is_transposed", False) else update)
            weights[f"{name}.{parameter}"] = getattr(module, parameter) + torch.stack(updates)
    return weights


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def assert_different(actual, expected):
    assert (actual - expected).abs().max() > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", MODELS)
def test_forward_and_gradients_are_those_of_the_slow_reference(name, variant):
    base = double(name)
    model = adapted(double(name), **VARIANTS[variant]).double()
    state = {key: value.clone() for key, value in get_peft_model_state_dict(model).items()}
    pools = {key: value.requires_grad_() for key, value in state.items() if key.endswith((".mos_A", ".mos_B"))}
    assert len(pools) == 4

    expected = torch.func.functional_call(base, reference_weights(base, state), (IDS,), {"labels": IDS})
    actual = model(IDS, labels=IDS)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-7, atol=1e-9)
    assert_different(actual.logits, base(IDS).logits)

    expected.loss.backward()
    actual.loss.backward()
    gradients = {id(p): p.grad for p in model.parameters() if p.requires_grad}
    assert len(gradients) == 4
    for key, pool in pools.items():
        [gradient] = [g for g in gradients.values() if g.shape == pool.shape and torch.allclose(g, pool.grad)]
        torch.testing.assert_close(gradient, pool.grad, rtol=1e-7, atol=1e-12, msg=key)
        assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", MODELS)
def test_blocks_are_layers_times_experts(name):
    model = adapted(tiny(name))
    state = get_peft_model_state_dict(model)
    layers = list(experts(tiny(name)))
    for parameter in ("gate_up_proj", "down_proj"):
        for k, layer in enumerate(layers):
            for expert in range(E):
                index_a, index_b, _ = of_expert(state, in_file(layer, parameter), expert)
                sizes = len(layers) * E, *(SETTINGS[s] for s in ("equivalent_rank", "shards_per_vector")), 1, 3
                check_indices(index_a, k * E + expert, *sizes)
                check_indices(index_b, k * E + expert, *sizes)
                assert not torch.equal(index_a, index_b)


@pytest.mark.parametrize("targets", [EXPERTS, EXPERTS[1:], ["experts.gate_up_proj", "mlp.gate.weight"]])
@pytest.mark.parametrize("name", MODELS)
def test_as_many_parameters_as_lora(name, targets):
    targets = [t.replace("gate.weight", "router.weight") for t in targets] if name == "gpt-oss" else targets
    mos = get_peft_model(tiny(name), MosConfig(r=3, equivalent_rank=4, target_modules=[], target_parameters=targets))
    lora = get_peft_model(tiny(name), LoraConfig(r=4, target_modules=[], target_parameters=targets))
    assert mos.get_nb_trainable_parameters() == (
        lora.get_nb_trainable_parameters()[0],
        mos.get_nb_trainable_parameters()[1],
    )
    assert sorted(mos.targeted_parameter_names) == sorted(lora.targeted_parameter_names)


@pytest.mark.parametrize("name", MODELS)
def test_starts_at_zero_and_learns(name):
    model = adapted(tiny(name), init_weights=True).train()
    assert torch.equal(model.eval()(IDS).logits, tiny(name)(IDS).logits)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model.train()(IDS, labels=IDS).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.05
    changed = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    assert changed
    assert all("mos_A" in key or "mos_B" in key for key in changed)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_save_and_load(name, tmp_path, low_cpu_mem_usage):
    model = adapted(tiny(name), target_modules=["q_proj", "o_proj"])
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny(name), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(loaded(IDS).logits, model(IDS).logits)
    saved = get_peft_model_state_dict(model)
    trained = sum(v.numel() for k, v in saved.items() if k.endswith(("mos_A", "mos_B")))
    assert trained == model.get_nb_trainable_parameters()[0]  # each pool once


@pytest.mark.parametrize("safe", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_merge_unmerge_unload(name, safe):
    model = adapted(tiny(name), target_modules=["o_proj"])
    expected, base = model(IDS).logits, tiny(name)(IDS).logits
    assert_different(expected, base)
    model.merge_adapter(safe_merge=safe)
    assert_same(model(IDS).logits, expected)
    model.unmerge_adapter()
    assert_same(model(IDS).logits, expected)
    assert_same(copy.deepcopy(model).unload()(IDS).logits, base)
    merged = model.merge_and_unload(safe_merge=safe)
    assert_same(merged(IDS).logits, expected)
    assert merged.state_dict().keys() == tiny(name).state_dict().keys()


@pytest.mark.parametrize("targets", [EXPERTS, EXPERTS[:1], EXPERTS[1:]])
@pytest.mark.parametrize("name", MODELS)
def test_exported_lora_has_the_same_targets_and_logits(name, tmp_path, targets):
    model = adapted(tiny(name), targets, target_modules=["o_proj"], random_scaling=True, scale_mean=1.0)
    model.save_pretrained(tmp_path / "mos")
    export_lora(tmp_path / "mos", tmp_path / "lora", check=tiny(name))
    lora = PeftModel.from_pretrained(tiny(name), tmp_path / "lora")
    assert lora.peft_config["default"].peft_type == "LORA"
    assert set(lora.peft_config["default"].target_parameters) == set(targets)
    assert_same(lora(IDS).logits, model(IDS).logits)
    reference = get_peft_model(tiny(name), LoraConfig(target_modules=["o_proj"], target_parameters=targets))
    assert get_peft_model_state_dict(lora).keys() == get_peft_model_state_dict(reference).keys()


def test_several_adapters(tmp_path):
    model = adapted(tiny("Mixtral"))
    first = model(IDS).logits
    second_config = MosConfig(
        **SETTINGS, init_weights=False, index_seed=1, target_modules=[], target_parameters=EXPERTS
    )
    model.add_adapter("second", second_config)
    assert_same(model(IDS).logits, first)
    model.set_adapter("second")
    second = model(IDS).logits
    assert_different(second, first)
    model.base_model.set_adapter(["default", "second"])
    both = model(IDS).logits
    assert_different(both, second)
    assert_same(copy.deepcopy(model).merge_and_unload()(IDS).logits, both)
    with model.disable_adapter():
        assert_same(model(IDS).logits, tiny("Mixtral")(IDS).logits)
    model.set_adapter("second")
    model.save_pretrained(tmp_path)
    assert_same(PeftModel.from_pretrained(tiny("Mixtral"), tmp_path / "second")(IDS).logits, second)
    model.delete_adapter("default")
    assert_same(model(IDS).logits, second)
    assert not [key for key in model.state_dict() if "default" in key]


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_keeps_gradients(use_reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = adapted(tiny("Qwen3-MoE"))
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model.train()(IDS, labels=IDS).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-5, atol=1e-7)


def test_half_precision_base_and_autocast():
    model = adapted(tiny("Mixtral").bfloat16())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(IDS, labels=IDS).loss
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    expected = model(IDS).logits
    torch.testing.assert_close(model.merge_and_unload()(IDS).logits, expected, rtol=0.1, atol=0.05)


def test_the_weights_used_are_those_the_model_has():
    """Whoever writes them: nothing is kept between forward passes."""
    model = adapted(tiny("Mixtral"))
    with torch.no_grad():
        before = model(IDS).logits
        for pool in (p for p in model.parameters() if p.requires_grad):
            pool.data.mul_(2)
        assert_different(model(IDS).logits, before)


def test_matrices_can_be_targeted_as_parameters(tmp_path):
    """As for LoRA, a 2D parameter is one block of its layer; here the update is that of the module's own MoS."""
    model = adapted(tiny("Llama"), ["gate_proj.weight"])
    modules = adapted(tiny("Llama"), None, target_modules=["gate_proj"])
    ours, theirs = (dict(m.named_parameters()) for m in (model, modules))
    assert {n for n, p in ours.items() if p.requires_grad} == {n for n, p in theirs.items() if p.requires_grad}
    model.save_pretrained(tmp_path / "mos")
    export_lora(tmp_path / "mos", tmp_path / "lora", check=tiny("Llama"))
    assert_same(PeftModel.from_pretrained(tiny("Llama"), tmp_path / "lora")(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("name", ["Mixtral", "Qwen3-MoE", "DeepSeek-V3"])
@pytest.mark.filterwarnings("ignore:'all-linear' leaves out")
def test_all_linear_adapts_the_experts_where_lora_does(name):
    mos = get_peft_model(tiny(name), MosConfig(r=2, target_modules="all-linear"))
    lora = get_peft_model(tiny(name), LoraConfig(target_modules="all-linear"))
    assert set(lora.targeted_parameter_names) <= set(mos.targeted_parameter_names)
    assert [n for n in lora.targeted_parameter_names if "experts" in n]


def test_all_linear_says_what_it_leaves_out():
    """Layers that no setting of the config fits: a gate with one output, and a type of one block only."""
    base = tiny("Qwen2-MoE")
    with pytest.warns(UserWarning, match=r"'all-linear' leaves out .*shared_expert_gate.*does not divide") as caught:
        model = get_peft_model(base, MosConfig(r=4, target_modules="all-linear"))
    assert len([w for w in caught if "leaves out" in str(w.message)]) == 1
    linear = {n for n, m in tiny("Qwen2-MoE").named_modules() if isinstance(m, nn.Linear) and n != "lm_head"}
    left = {n for n in linear if n.endswith("shared_expert_gate")}
    assert set(model.targeted_module_names) == linear - left


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 0.1}, r"dropout=0.1 cannot act on target_parameters=.*Set dropout=0"),
        ({"target_parameters": "down_proj"}, "target_parameters='down_proj' must be a list"),
        ({"shards_per_vector": 5}, "shards_per_vector=5 does not divide in_features"),
        ({"r": 30}, r"r=30 needs .* over 12 block\(s\)"),
        ({"target_parameters": ["experts.ghost"]}, "No `target_modules` passed but also no `target_parameters` found"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_changes(settings, message):
    base = tiny("Mixtral")
    before = [type(module) for module in base.modules()]
    with pytest.raises(ValueError, match=message):
        adapted(base, **settings)
    assert [type(module) for module in base.modules()] == before


def test_adapters_target_the_same_parameters():
    model = adapted(tiny("Mixtral"))
    other = MosConfig(**SETTINGS, target_modules=[], target_parameters=EXPERTS[:1])
    with pytest.raises(ValueError, match="must target the same set of parameters"):
        model.add_adapter("second", other)
    assert list(model.peft_config) == ["default"]


def test_integer_weights_are_refused():
    base = tiny("Mixtral")
    module = base.model.layers[1].mlp.experts
    module.down_proj = nn.Parameter(module.down_proj.data.to(torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"experts.down_proj' holds torch.int8"):
        adapted(base)


def test_mixed_batches_are_refused():
    model = adapted(tiny("Mixtral"))
    with pytest.raises(ValueError, match="cannot serve a mixed batch"):
        model(IDS, adapter_names=["default", "__base__"])
