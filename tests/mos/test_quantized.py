"""MoS on quantized base models, with each of PEFT's backends that a CPU can run.

torchao and HQQ are no dependencies of this repository: a slow test installs them in a folder of its own and runs this
file again. GPTQ and AWQ (gptqmodel), EETQ and AQLM need a GPU to load a layer; they are untried.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import BitsAndBytesConfig, LlamaForCausalLM, TorchAoConfig

from mos import MosConfig, export_lora

IDS = torch.arange(24).view(3, 8) % 61


def by_transformers(config):
    """Loads a saved model with its linear layers quantized as `config()` says."""

    def load(folder):
        settings = {"quantization_config": config(), "dtype": torch.float32, "device_map": "cpu"}
        return LlamaForCausalLM.from_pretrained(folder, **settings)

    return load


def nf4():
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def torchao():
    quantization = pytest.importorskip("torchao.quantization")
    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


def hqq(folder):
    """transformers 5.19 does not load with HqqConfig ("not available yet"), so the layers are put in by hand."""
    quantize = pytest.importorskip("hqq.core.quantize")
    model = LlamaForCausalLM.from_pretrained(folder).requires_grad_(False)
    layers = {n: m for n, m in model.model.named_modules() if isinstance(m, torch.nn.Linear)}
    for name, layer in layers.items():
        config = quantize.BaseQuantizeConfig(nbits=8, group_size=64)
        model.model.set_submodule(name, quantize.HQQLinear(layer, config, compute_dtype=torch.float32, device="cpu"))
    return model


# Package, loader, and how far a merged weight may be from the sum, in parts of its largest number.
QUANTIZERS = {
    "8-bit": ("bitsandbytes", by_transformers(lambda: BitsAndBytesConfig(load_in_8bit=True)), 0.02),
    "NF4": ("bitsandbytes", by_transformers(nf4), 0.2),
    "torchao int8": ("torchao", by_transformers(torchao), 0.02),
    "HQQ 8-bit": ("hqq", hqq, 0.02),
}


@pytest.fixture(params=QUANTIZERS)
def quantizer(request):
    package, load, tolerance = QUANTIZERS[request.param]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed here; the slow test of this file brings it")
    return load, tolerance


@pytest.fixture
def quantized(tiny_llama, quantizer, tmp_path):
    """Builds the quantized base model."""
    tiny_llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path / "base")

    def build():
        return quantizer[0](tmp_path / "base").train()  # in eval mode bitsandbytes packs 4 bits and rounds them further

    return build


def adapted(base):
    torch.manual_seed(1)
    return get_peft_model(base, MosConfig(r=3, init_weights=False))


def test_trains_saves_exports_and_merges(quantized, quantizer, tmp_path):
    model = adapted(quantized())
    before = model.get_base_model()
    layer = before.model.layers[1].self_attn.q_proj
    assert layer.quantization_backend is not None
    assert "quantization_backend" in repr(layer)

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model(IDS, labels=IDS).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]

    expected = model(IDS).logits
    model.save_pretrained(tmp_path / "mos")
    loaded = PeftModel.from_pretrained(quantized(), tmp_path / "mos").train()
    torch.testing.assert_close(loaded(IDS).logits, expected)
    export_lora(tmp_path / "mos", tmp_path / "lora")
    lora = PeftModel.from_pretrained(quantized(), tmp_path / "lora").train()
    torch.testing.assert_close(lora(IDS).logits, expected, rtol=1e-4, atol=1e-4)

    weight = layer.get_base_weight().clone()
    total = weight + layer.get_delta_weight("default")
    for change, wanted in ((model.merge_adapter, total), (model.unmerge_adapter, weight)):
        change()  # quantizes anew
        assert (layer.get_base_weight() - wanted).abs().max() < quantizer[1] * total.abs().max()
    assert (total - weight).abs().max() > 0.2 * total.abs().max()


@pytest.mark.slow
def test_with_the_packages_that_are_not_installed(tmp_path):
    """This file once more, with torchao and HQQ from PyPI; skipped where pip does not reach it."""
    install = ["install", "-q", "--no-deps", "--target", str(tmp_path), "torchao", "hqq", "termcolor"]
    pip = subprocess.run([sys.executable, "-m", "pip", *install], capture_output=True, text=True)
    if pip.returncode:
        pytest.skip(f"torchao and HQQ come from PyPI, which pip does not reach: {pip.stderr.strip()[-300:]}")
    here = Path(__file__)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", str(here)],
        cwd=here.parents[2],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(here.parents[2])])},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-5000:]
    assert "skipped" not in run.stdout
