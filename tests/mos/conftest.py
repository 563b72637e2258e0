import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

IDS = torch.arange(24).view(3, 8) % 61  # (batch, length)


@pytest.fixture
def ids():
    return IDS


@pytest.fixture
def tiny_llama():
    """Builds the same random Llama each time: grouped queries (k and v half as wide as q), three blocks."""

    def build(dtype=torch.float32, **changes):
        sizes = {
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 44,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(**sizes | changes)).to(dtype).eval()

    return build


@pytest.fixture
def tiny_llama_4bit(tiny_llama, tmp_path):
    """Likewise, with its linear layers in NF4 with double quantization, of widths that the CPU kernel takes."""

    def build():
        tiny_llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
        return LlamaForCausalLM.from_pretrained(tmp_path / "base", quantization_config=config).eval()

    return build


@pytest.fixture
def agrees_with_reference(tiny_llama):
    """Compares a method in float64 with its slow reference: logits, loss gradients of every adapter parameter."""

    def check(config, reference_delta):
        """reference_delta: (parameters by their name in the file, module name) -> the update (o, h) of its weight"""
        model = get_peft_model(tiny_llama(torch.float64), config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.2 * torch.randn_like(parameter)
        base = tiny_llama(torch.float64)
        saved = get_peft_model_state_dict(model)
        trained = {k.replace(".default.weight", ""): p for k, p in model.named_parameters() if p.requires_grad}
        assert trained.keys() <= saved.keys()
        parameters = {k: v.clone().requires_grad_(k in trained) for k, v in saved.items()}
        weights = {
            f"{name}.weight": base.get_submodule(name).weight + reference_delta(parameters, f"base_model.model.{name}")
            for name in model.base_model.targeted_module_names
        }
        expected = torch.func.functional_call(base, weights, (IDS,), {"labels": IDS})
        actual = model(IDS, labels=IDS)
        torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-6, atol=1e-9)
        assert not torch.allclose(actual.logits, base(IDS).logits, rtol=1e-3)

        expected.loss.backward()
        actual.loss.backward()
        for name, parameter in trained.items():
            assert parameter.grad.abs().max() > 0, name
            torch.testing.assert_close(parameter.grad, parameters[name].grad, rtol=1e-6, atol=1e-12, msg=name)

    return check
