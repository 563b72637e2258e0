import pytest
import torch
from accelerate import init_empty_weights
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from mos.prolora import ProloraConfig
from mos.prolora.layer import spread


def rotated(chunk, copies, width):
    """Element by element: row j of copy i is row (j + i) mod rank of the chunk; copies side by side, cut to width."""
    rank, size = chunk.shape
    assert size == -(-width // copies)
    return torch.stack(
        [torch.stack([chunk[(j + c // size) % rank, c % size] for c in range(width)]) for j in range(rank)]
    )


@pytest.mark.parametrize(("r", "u", "m", "n"), [(4, 0, 2, 2), (8, 0, 4, 4), (4, 1, 3, 3), (5, 2, 1, 7), (2, 1, 2, 3)])
def test_forward_and_gradients_are_those_of_the_slow_reference(agrees_with_reference, tiny_llama, r, u, m, n):
    config = ProloraConfig(r=r, unshared_rank=u, sharing_a=m, sharing_b=n, init_weights=False)
    base = tiny_llama()

    def delta(parameters, module):
        layer = base.get_submodule(module.removeprefix("base_model.model."))
        a = rotated(parameters[f"{module}.prolora_A"], m, layer.in_features)
        b = rotated(parameters[f"{module}.prolora_B"].T, n, layer.out_features).T
        update = b @ a
        if u:
            update = update + parameters[f"{module}.prolora_unshared_B"] @ parameters[f"{module}.prolora_unshared_A"]
        return 16 / r * update

    agrees_with_reference(config, delta)


def test_spread_by_hand():
    chunk = torch.tensor([[1, 2], [3, 4], [5, 6]])
    assert spread(chunk, 3, 5).tolist() == [[1, 2, 3, 4, 5], [3, 4, 5, 6, 1], [5, 6, 1, 2, 3]]


def test_rotation_raises_the_rank_of_the_update(tiny_llama):
    torch.manual_seed(0)
    config = ProloraConfig(r=4, sharing_a=4, sharing_b=4, init_weights=False)
    layer = get_peft_model(tiny_llama(), config).base_model.model.model.layers[0].self_attn.q_proj
    assert torch.linalg.matrix_rank(layer.get_delta_weight("default")) == 4


def test_chunks_start_with_the_bound_of_the_full_width(tiny_llama):
    model = get_peft_model(tiny_llama(), ProloraConfig(r=8, sharing_a=4, sharing_b=4))
    for layer in model.base_model.model.model.layers:
        chunk = layer.self_attn.q_proj.prolora_A["default"]  # (8, 8) for h = 32
        assert chunk.shape == (8, 8)
        assert 0.9 * 32**-0.5 < chunk.abs().max() <= 32**-0.5
        assert not layer.self_attn.q_proj.prolora_B["default"].any()


@pytest.mark.parametrize(
    ("model", "settings", "expected"),
    [
        ("7b", {"r": 4, "sharing_a": 2, "sharing_b": 2}, 4_997_120),
        ("7b", {"r": 8, "sharing_a": 4, "sharing_b": 4}, 4_997_120),
        ("13b", {"r": 4, "sharing_a": 2, "sharing_b": 2}, 7_823_360),
        ("13b", {"r": 8, "sharing_a": 4, "sharing_b": 4}, 7_823_360),
    ],
)
def test_parameters_of_the_paper(model, settings, expected):
    sizes = {"7b": (4096, 11008, 32, 32), "13b": (5120, 13824, 40, 40)}[model]
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    with init_empty_weights():
        base = LlamaForCausalLM(LlamaConfig(**dict(zip(names, sizes, strict=True))))
    trainable, _ = get_peft_model(base, ProloraConfig(**settings)).get_nb_trainable_parameters()
    assert trainable == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 4, "unshared_rank": 4}, "4 - 4 must be at least 1"),
        ({"r": 4, "unshared_rank": -1}, "4 - -1 must be at least 1 and at most r"),
        ({"r": 0}, "r=0 must be"),
        ({"r": None}, "r=None must be"),
        ({"sharing_a": 0}, "sharing_a=0 must be"),
        ({"sharing_b": 2.5}, "sharing_b=2.5 must be"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ProloraConfig(**settings)


def test_more_copies_than_features_are_refused_before_a_layer_changes(tiny_llama):
    model = tiny_llama()
    with pytest.raises(ValueError, match=r"'model.layers.0.self_attn.k_proj' has 32 inputs and 16 outputs"):
        get_peft_model(model, ProloraConfig(sharing_b=17))
    assert not [name for name, _ in model.named_modules() if "prolora" in name or "base_layer" in name]
