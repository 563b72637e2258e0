import pytest
import torch
from peft import PeftModel, get_peft_model

from mos import ProloraConfig, TiedLoraConfig, export_lora


@pytest.mark.parametrize(
    "config",
    [
        ProloraConfig(r=5, sharing_a=3, sharing_b=7, init_weights=False),  # 32, 44 and 16 are not multiples
        ProloraConfig(r=5, unshared_rank=2, sharing_a=3, sharing_b=2, init_weights=False),
        TiedLoraConfig(r=40, init_weights=False),
    ],
    ids=["prolora", "prolora-unshared", "tied_lora"],
)
def test_exported_lora_gives_the_same_logits(tiny_llama, ids, tmp_path, config):
    model = get_peft_model(tiny_llama(), config)
    for name, parameter in model.named_parameters():
        if name.endswith(("_u.default.weight", "_v.default.weight")):
            torch.nn.init.normal_(parameter)
    expected = model(ids).logits
    assert (expected - tiny_llama()(ids).logits).abs().max() > 1e-3
    model.save_pretrained(tmp_path / "own")
    export_lora(tmp_path / "own", tmp_path / "lora")
    lora = PeftModel.from_pretrained(tiny_llama(), tmp_path / "lora")
    torch.testing.assert_close(lora(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert lora.base_model.targeted_module_names == model.base_model.targeted_module_names
