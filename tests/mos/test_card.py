"""The model card of a saved adapter tells how to load it."""

import re

import pytest
import torch
from huggingface_hub import ModelCard
from peft import get_peft_model

from mos import MosConfig, ProloraConfig, TiedLoraConfig

HEADING = "## How to load this adapter"
CONFIGS = {
    "MOS": MosConfig(r=3, task_type="CAUSAL_LM", init_weights=False),
    "PROLORA": ProloraConfig(r=4, task_type="CAUSAL_LM", init_weights=False),
    "TIED_LORA": TiedLoraConfig(r=6, task_type="CAUSAL_LM", init_weights=False),
}


@pytest.mark.parametrize("method", CONFIGS)
def test_its_code_loads_the_adapter(tiny_llama, ids, tmp_path, method):
    model = get_peft_model(tiny_llama(), CONFIGS[method]).eval()
    model.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-generation"  # what PEFT wrote is still there
    section = card.text.partition(HEADING)[2]
    assert f"KeyError: '{method}'" in section
    [code] = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert code.startswith("import mos")
    names = {"base_model": tiny_llama()}
    exec(code.replace("path or name of this adapter", str(tmp_path)), names)
    assert torch.equal(names["model"](ids).logits, model(ids).logits)


def test_saving_again_keeps_one_section_and_the_authors_words(tiny_llama, tmp_path):
    model = get_peft_model(tiny_llama(), CONFIGS["MOS"])
    model.save_pretrained(tmp_path)
    path = tmp_path / "README.md"
    path.write_text(path.read_text() + "\n## Of mine\n")
    model.save_pretrained(tmp_path)
    assert path.read_text().count(HEADING) == 1
    assert "## Of mine" in path.read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_an_adapter_in_a_folder_of_its_own_has_its_own_card(tiny_llama, tmp_path):
    get_peft_model(tiny_llama(), CONFIGS["MOS"], adapter_name="second").save_pretrained(tmp_path)
    assert ModelCard.load(tmp_path / "second" / "README.md").data.library_name == "peft"
