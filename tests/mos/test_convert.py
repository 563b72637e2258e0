"""The authors' two forms, built here from a MoS adapter as their trainer writes them, come back as the same update."""

import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from mos import MosConfig, convert_upstream
from mos.shards import assemble

SETTINGS = {"equivalent_rank": 2, "shards_per_vector": 4, "private_rank": 1}
TARGETS = ["q_proj", "down_proj"]


@pytest.fixture
def trained(tiny_llama):
    torch.manual_seed(2)
    return get_peft_model(tiny_llama(), MosConfig(r=3, init_weights=False, target_modules=TARGETS, **SETTINGS)).eval()


def layers(model):
    return {n: m for n, m in model.named_modules() if n.rpartition(".")[2] in TARGETS}


def as_pools(layer, pools):
    """What `Trainer.save_model` of the authors writes: the type's pools on each layer, index vectors, scales."""
    index_a, index_b = (index.flatten().long() for index in layer.mos_index["default"])
    vector = torch.full((3,), 2.0)
    return {
        "lora_A.weight": pools[0].detach().clone(),
        "lora_B.weight": pools[1].detach().T.contiguous(),
        "lora_pair_mask": index_a,
        "lora_pair_mask_B": index_b,
        "lora_A_vec": vector,
        "lora_A_anti_vec": 1 / vector,
    }


def as_factors(layer, pools):
    """What their last step writes: the factors of every layer."""
    a, b = (assemble(pool.detach(), index) for pool, index in zip(pools, layer.mos_index["default"], strict=True))
    return {"lora_A.weight": a, "lora_B.weight": b.T.contiguous()}


def write(folder, model, form):
    folder.mkdir()
    state = {
        f"{n}.{k}": v
        for n, m in layers(model).items()
        for k, v in form(m, (m.mos_A["default"], m.mos_B["default"])).items()
    }
    torch.save(state, folder / "adapter_model.bin")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": TARGETS}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"task_type": "CAUSAL_LM"}))


@pytest.mark.parametrize("form", [as_pools, as_factors])
def test_same_update(trained, tiny_llama, ids, tmp_path, form):
    write(tmp_path / "theirs", trained, form)
    convert_upstream(tmp_path / "theirs", tmp_path / "ours", **SETTINGS)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "ours")
    torch.testing.assert_close(loaded(ids).logits, trained(ids).logits)
    assert (
        sum(p.numel() for n, p in loaded.named_parameters() if "mos_" in n)
        == (trained.get_nb_trainable_parameters()[0])
    )


def test_shared_shards_stay_shared_and_private_ones_private(trained, tmp_path):
    write(tmp_path / "theirs", trained, as_factors)
    convert_upstream(tmp_path / "theirs", tmp_path / "ours", **SETTINGS)
    state = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    for name, layer in layers(trained).items():
        index, original = state[f"{name}.mos_index"], layer.mos_index["default"]
        assert torch.equal(index[:, 2:].int(), original[:, 2:])  # the private row
        assert index[:, :2].max() < 12 == (2 - 1) * 3 * 4
    drawn = [layer.mos_index["default"][0, :2].flatten() for layer in list(layers(trained).values())[::2]]
    found = [state[f"{name}.mos_index"][0, :2].flatten() for name in list(layers(trained))[::2]]
    for i in range(3):
        for j in range(3):
            assert torch.equal(drawn[i][:, None] == drawn[j], found[i][:, None] == found[j])


@pytest.mark.parametrize(
    ("form", "changes", "message"),
    [
        (as_pools, {"equivalent_rank": 3}, "pools of 24 and 24 shards over 3 blocks, but equivalent_rank=3 .* make 36"),
        (as_factors, {"shards_per_vector": 3}, "3 vectors of width 32, which does not fit r=3 and shards_per_vector=3"),
        (as_factors, {"private_rank": 0, "equivalent_rank": 1}, "more than 12 different public shards"),
    ],
)
def test_wrong_settings(trained, tmp_path, form, changes, message):
    write(tmp_path / "theirs", trained, form)
    with pytest.raises(ValueError, match=message):
        convert_upstream(tmp_path / "theirs", tmp_path / "ours", **SETTINGS | changes)
    assert not (tmp_path / "ours").exists()


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no adapter_config.json"):
        convert_upstream(tmp_path / "nowhere", tmp_path / "ours", **SETTINGS)
