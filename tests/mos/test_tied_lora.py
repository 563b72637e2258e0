import pytest
import torch
from accelerate import init_empty_weights
from peft import get_peft_model, get_peft_model_state_dict
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from mos.tied_lora import TiedLoraConfig

FUSED = ("q_proj", "k_proj", "v_proj")


def fused_update(parameters, block, r):
    """diag(v) B diag(u) A of the fused projection, from the definition:  (h + 2 h_kv, h)"""
    a = next(value for key, value in parameters.items() if key.endswith("tied_lora_A"))
    b = torch.cat([parameters[f"base_model.model.model.layers.0.self_attn.{t}.tied_lora_B"] for t in FUSED])
    u = parameters[f"{block}.q_proj.tied_lora_u"]
    v = torch.cat([parameters[f"{block}.{t}.tied_lora_v"] for t in FUSED])
    assert a.shape == (r, 32) and b.shape == (64, r) and u.shape == (r,) and v.shape == (64,)
    return torch.diag(v) @ b @ torch.diag(u) @ a


@pytest.mark.parametrize("r", [1, 5, 40])
def test_forward_and_gradients_are_those_of_the_slow_reference(agrees_with_reference, r):
    def delta(parameters, module):
        block, _, kind = module.rpartition(".")
        first = {"q_proj": 0, "k_proj": 32, "v_proj": 48}[kind]
        rows = 32 if kind == "q_proj" else 16
        return 16 / r * fused_update(parameters, block, r)[first : first + rows]

    agrees_with_reference(TiedLoraConfig(r=r, init_weights=False), delta)


def test_update_starts_at_zero_with_unit_scales(tiny_llama):
    saved = get_peft_model_state_dict(get_peft_model(tiny_llama(), TiedLoraConfig(r=6)))
    for name, value in saved.items():
        start = {"A": None, "B": 0.0, "u": 1.0, "v": 1.0}[name.rpartition("_")[2]]
        if start is None:
            assert 0.9 * 32**-0.5 < value.abs().max() <= 32**-0.5
        else:
            assert (value == start).all(), name


def test_file_holds_every_shared_tensor_once(tiny_llama):
    saved = get_peft_model_state_dict(get_peft_model(tiny_llama(), TiedLoraConfig(r=6)))
    kinds = [name.rpartition("_")[2] for name in saved]
    assert {kind: kinds.count(kind) for kind in "ABuv"} == {"A": 1, "B": 3, "u": 3, "v": 9}


def test_parameters_of_the_paper():
    with init_empty_weights():
        base = LlamaForCausalLM(LlamaConfig())  # LLaMA2-7B is the default
    trainable, _ = get_peft_model(base, TiedLoraConfig(r=280)).get_nb_trainable_parameters()
    assert trainable == 4_989_696


def test_adapters_keep_their_own_shared_part(tiny_llama, ids):
    """The second adapter has other hosts: it leaves out the first block, and has another rank."""
    config = TiedLoraConfig(r=6, init_weights=False)
    model = get_peft_model(tiny_llama(), config)
    alone = model(ids).logits
    model.add_adapter("later", TiedLoraConfig(r=3, init_weights=False, layers_to_transform=[1, 2]))
    torch.testing.assert_close(model(ids).logits, alone)
    model.set_adapter("later")
    later = model(ids).logits
    assert not torch.allclose(later, alone)
    model.delete_adapter("default")
    torch.testing.assert_close(model(ids).logits, later)
    assert not [name for name, _ in model.named_parameters() if ".default." in name]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (
            ["q_proj", "down_proj"],
            r"'model.layers.0.mlp.down_proj' has 44 inputs, but 'model.layers.0.self_attn.q_proj'",
        ),
        (r".*\.0\..*q_proj|.*\.1\..*down_proj", r"'model.layers.1.mlp.down_proj' has 44 inputs"),
    ],
)
def test_layers_of_different_width_are_refused_before_one_changes(tiny_llama, targets, message):
    model = tiny_llama()
    with pytest.raises(ValueError, match=message):
        get_peft_model(model, TiedLoraConfig(r=2, target_modules=targets))
    assert not [name for name, _ in model.named_modules() if "tied_lora" in name or "base_layer" in name]


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("use_reentrant", "static_graph", "right"), [(False, False, True), (True, True, True), (True, False, False)]
)
def test_ddp_is_right_or_refused(tiny_llama, ids, process_group, use_reentrant, static_graph, right):
    """With reentrant checkpointing, DDP would average a shared factor after the backward pass of its first block."""
    torch.manual_seed(1)
    model = get_peft_model(tiny_llama(), TiedLoraConfig(r=4, init_weights=False))
    model.train()(ids, labels=ids).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    parallel = DistributedDataParallel(model, static_graph=static_graph)
    loss = parallel(ids, labels=ids).loss
    if not right:
        with pytest.raises(RuntimeError, match="DDP with reentrant gradient checkpointing"):
            loss.backward()
        return
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize("settings", [{"r": 0}, {"r": None}, {"r": 4.0}, {"r": 4, "dropout": 1.0}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError, match="must be"):
        TiedLoraConfig(**settings)
