"""Names and kinds by which PEFT, TRL, transformers and others find the adapters of LoRA, and so ours."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, convert_to_lora, get_peft_model, get_peft_model_state_dict
from peft.functional import cast_adapter_dtype, delete_adapter, set_requires_grad

from mos import MosConfig, ProloraConfig, TiedLoraConfig, convert_upstream

CONFIGS = {
    "mos": lambda **settings: MosConfig(**{"r": 3, "init_weights": False} | settings),
    "prolora": lambda **settings: ProloraConfig(**{"r": 4, "unshared_rank": 1, "init_weights": False} | settings),
    "tied_lora": lambda **settings: TiedLoraConfig(**{"r": 4, "init_weights": False} | settings),
}


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def trained(model):
    return [name for name, p in model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("method", ["mos", "prolora"])
@pytest.mark.parametrize("first", ["all-linear", ["q_proj"], ["q_proj", "lm_head"]])
def test_a_second_adapter_on_all_linear_layers(tiny_llama, ids, method, first):
    """It adapts what LoRA's does, the layers that the first one is on included."""
    expected = get_peft_model(tiny_llama(), LoraConfig(target_modules=first))
    expected.add_adapter("second", LoraConfig(target_modules="all-linear"))
    rank = {"r": 2} if method == "mos" else {}  # the head is a single layer, which has no others to share with
    model = get_peft_model(tiny_llama(), CONFIGS[method](target_modules=first, **rank))
    model.add_adapter("second", CONFIGS[method](target_modules="all-linear"))
    assert model.peft_config["second"].target_modules == expected.peft_config["second"].target_modules
    model.set_adapter("second")
    assert model(ids).logits.isfinite().all()


def test_a_second_adapter_of_tied_lora_on_all_linear_layers(tiny_llama):
    """Tied LoRA cannot adapt layers of different widths, but it finds them all, and says so before anything changes."""
    square = {"intermediate_size": 32, "num_key_value_heads": 4}
    model = get_peft_model(tiny_llama(**square), TiedLoraConfig(r=4, target_modules="all-linear"))
    model.add_adapter("second", TiedLoraConfig(r=4, target_modules="all-linear"))
    assert len(model.peft_config["second"].target_modules) == 7


def test_names_of_trained_parameters_are_as_those_of_lora(tiny_llama, config):
    """<layer>.<prefix>A.<adapter>.weight, whatever the adapter is called."""
    for adapter in ("default", "my-adapter 2"):
        model = get_peft_model(tiny_llama(), config(), adapter_name=adapter)
        for name in trained(model):
            *_, parameter, own, last = name.split(".")
            assert parameter.startswith(model.base_model.prefix)
            assert (own, last) == (adapter, "weight")


def reference_of_trl(model):
    """How DPO, KTO, GRPO and RLOO of TRL copy the policy (1.16; `test_trl.py` runs the trainers themselves)."""
    model.add_adapter("ref", model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if ".default." in name:
            model.get_parameter(name.replace(".default.", ".ref.")).data.copy_(parameter.data)


def assert_reference_is_the_policy(model, ids):
    policy = model(ids).logits
    reference_of_trl(model)
    model.set_adapter("ref")
    assert torch.equal(model(ids).logits, policy)


def test_reference_of_a_new_adapter(tiny_llama, ids, config):
    assert_reference_is_the_policy(get_peft_model(tiny_llama(), config()).eval(), ids)


def test_reference_of_a_loaded_adapter(tiny_llama, ids, config, tmp_path):
    get_peft_model(tiny_llama(), config()).save_pretrained(tmp_path)
    assert_reference_is_the_policy(PeftModel.from_pretrained(tiny_llama(), tmp_path, is_trainable=True), ids)


@pytest.mark.parametrize("changes", [{"index_seed": 5}, {"random_scaling": True, "scale_mean": 1.0, "index_seed": 5}])
def test_reference_of_an_adapter_whose_file_holds_another_choice(tiny_llama, ids, tmp_path, changes):
    """Its settings do not tell which shards it reads, nor their scales: the seed of the file is another one."""
    get_peft_model(tiny_llama(), CONFIGS["mos"](**changes)).save_pretrained(tmp_path)
    config = MosConfig.from_pretrained(tmp_path)
    config.index_seed = 0
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path, config=config, is_trainable=True)
    assert_reference_is_the_policy(model, ids)


def test_reference_of_a_converted_adapter(tiny_llama, ids, tmp_path):
    torch.manual_seed(2)
    base = get_peft_model(tiny_llama(), MosConfig(r=3, init_weights=False, target_modules=["q_proj"])).eval()
    folder = tmp_path / "theirs"
    folder.mkdir()
    state = {}
    for block, layer in enumerate(base.get_base_model().model.layers):
        a, b = layer.self_attn.q_proj.factors("default")
        name = f"base_model.model.model.layers.{block}.self_attn.q_proj"
        state |= {f"{name}.lora_A.weight": a.detach().clone(), f"{name}.lora_B.weight": b.detach().clone()}
    torch.save(state, folder / "adapter_model.bin")
    LoraConfig(r=3, lora_alpha=16, target_modules=["q_proj"]).save_pretrained(folder)
    settings = {"equivalent_rank": 2, "shards_per_vector": 4, "private_rank": 1}
    convert_upstream(folder, tmp_path / "ours", **settings)
    model = PeftModel.from_pretrained(tiny_llama(), tmp_path / "ours", is_trainable=True)
    torch.testing.assert_close(model(ids).logits, base(ids).logits)
    assert_reference_is_the_policy(model, ids)


def test_an_adapter_with_other_settings_draws_its_own_choice(tiny_llama):
    model = get_peft_model(tiny_llama(), CONFIGS["mos"]())
    model.add_adapter("other", CONFIGS["mos"](index_seed=1))
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    assert not torch.equal(layer.mos_index["default"], layer.mos_index["other"])


def test_files_have_each_tensor_once_under_the_names_of_today(tiny_llama):
    keys = get_peft_model_state_dict(get_peft_model(tiny_llama(), CONFIGS["mos"]()))
    names = [key.rpartition(".")[2] for key in keys]
    counts = {name: names.count(name) for name in names}
    assert counts == {"mos_A": 7, "mos_B": 7, "mos_index": 21, "mos_scale": 21}
    assert all(".layers.0." in key for key in keys if key.endswith(("mos_A", "mos_B")))


def test_a_checkpoint_of_the_whole_model(tiny_llama, ids, config):
    """As trainers without PEFT write it: every name is in it, and it loads strictly."""
    torch.manual_seed(1)
    model = get_peft_model(tiny_llama(), config()).eval()
    other = get_peft_model(tiny_llama(), config()).eval()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert torch.equal(other(ids).logits, model(ids).logits)
    assert len(trained(other)) == len(trained(model))


def test_functions_of_peft_for_injected_models(tiny_llama, ids, config):
    base = tiny_llama().bfloat16()
    base.add_adapter(config())
    prefix = f"{base.peft_config['default'].peft_type.value.lower()}_"
    base.bfloat16()
    cast_adapter_dtype(base, "default")
    assert {p.dtype for name, p in base.named_parameters() if f".{prefix}" in name} == {torch.float32}
    set_requires_grad(base, "default", requires_grad=False)
    assert not trained(base)
    delete_adapter(base, "default", prefix)
    assert not [name for name in base.state_dict() if ".default" in name]
    assert torch.equal(base(ids).logits, tiny_llama().bfloat16()(ids).logits)


def test_status_counts_and_conversion(tiny_llama, config):
    model = get_peft_model(tiny_llama(), config())
    status = model.get_model_status()
    assert status.available_adapters == ["default"]
    assert status.requires_grad == {"default": True}
    trainable, total = model.get_nb_trainable_parameters()
    assert trainable == sum(model.get_parameter(name).numel() for name in trained(model))
    assert total == trainable + sum(p.numel() for p in tiny_llama().parameters())
    assert model.supports_lora_conversion()
    assert convert_to_lora(model, rank=2)[0].peft_type == "LORA"


def test_transformers_saves_and_loads_it_equal(tiny_llama, ids, config, tmp_path):
    base = tiny_llama()
    base.add_adapter(config())
    base.save_pretrained(tmp_path)
    loaded = tiny_llama()
    report = loaded.load_adapter(str(tmp_path), "other")
    assert not report.unexpected_keys
    assert not report.mismatched_keys
    named = {name for name, _ in loaded.named_parameters()}
    assert not report.missing_keys & named  # only further names of parameters that layers share
    assert torch.equal(loaded(ids).logits, base.eval()(ids).logits)


def test_optimizers_and_clipping_see_each_parameter_once(tiny_llama, ids, config):
    model = get_peft_model(tiny_llama(), config())
    parameters = [p for p in model.parameters() if p.requires_grad]
    assert len({id(p) for p in parameters}) == len(parameters)
    model(ids, labels=ids).loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1e9)
    torch.testing.assert_close(norm, torch.stack([p.grad.norm() for p in parameters]).norm())
