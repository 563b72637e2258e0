"""Base models: converted once, the same numbers in 4 bits and dequantized, and one sentence where there is none."""

import errno
import json
import os
import re
import shutil
from functools import partial
from pathlib import Path

import httpx
import huggingface_hub
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from omegaconf import OmegaConf
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from scripts.cell import base_model
from scripts.cell.adapter import linear_layers
from scripts.cell.shapes import model_config
from scripts.config import compose
from tests.scripts import families


@pytest.fixture
def model(tiny):
    return tiny().model


@pytest.fixture
def trainer(tiny):
    return tiny().trainer


def system_error(code, response):
    return OSError(code, os.strerror(code), "/some/file")


HUB = huggingface_hub.constants.HF_HUB_CACHE


def hub(repo="meta-llama/Llama-2-7b-hf"):
    source = {"kind": "hub", "repo": repo, "revision": "main"}
    return OmegaConf.create({"name": "hub", "source": source, "architecture": None})


def local(path):
    return OmegaConf.create({"name": "mine", "source": {"kind": "local", "path": str(path)}, "architecture": None})


def test_a_missing_pad_token_is_added_and_nothing_else_changes(model, tiny_checkpoint, tmp_path):
    folder = base_model.checkpoint(model, tmp_path)
    before, after = (load_file(f / "model.safetensors") for f in (tiny_checkpoint, folder))
    assert before.keys() == after.keys()
    grown = [name for name in after if after[name].shape != before[name].shape]
    assert sorted(grown) == ["lm_head.weight", "model.embed_tokens.weight"]
    assert all(torch.equal(before[name], after[name][: len(before[name])]) for name in after)
    tokenizer = base_model.load_tokenizer(model, tmp_path)
    assert tokenizer.pad_token == "<pad>"
    assert tokenizer.pad_token_id == len(tokenizer) - 1 == after["lm_head.weight"].shape[0] - 1
    assert tokenizer.padding_side == "right"
    assert tokenizer("hi").input_ids[0] == tokenizer.bos_token_id


def test_a_checkpoint_is_converted_once(model, tmp_path, monkeypatch):
    folder = base_model.checkpoint(model, tmp_path)
    monkeypatch.setitem(base_model.SOURCES, "local", None)
    assert base_model.checkpoint(model, tmp_path) == folder


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_quantized_and_the_dequantized_base_give_the_same_logits(model, trainer, tmp_path, dtype):
    trainer = OmegaConf.merge(trainer, {"compute_dtype": dtype})
    quantized = base_model.load_quantized(model, trainer, tmp_path)
    assert sum(isinstance(module, Linear4bit) for module in quantized.modules()) == 2 * 7
    assert all(m.weight.quant_state.nested for m in quantized.modules() if isinstance(m, Linear4bit))
    folder = base_model.dequantized_checkpoint(model, trainer, tmp_path)
    dequantized = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert dequantized.dtype == getattr(torch, dtype)
    assert (folder / "tokenizer.json").is_file()
    ids = torch.randint(3, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        evaluated = quantized.eval()(ids).logits
        trained = quantized.train()(ids).logits  # after an evaluation: bitsandbytes must not have repacked the weights
        assert torch.equal(evaluated, dequantized(ids).logits)
        assert torch.equal(trained, evaluated)
        published = AutoModelForCausalLM.from_pretrained(base_model.checkpoint(model, tmp_path), dtype="auto")
        assert not torch.allclose(published(ids).logits, evaluated.float(), atol=1e-3)  # 4 bits do cost something


@pytest.mark.parametrize("family", ["Phi 3", "Qwen3", "Gemma 3"])
def test_a_base_model_of_another_family_is_quantized_and_dequantized(family, tiny_checkpoint, trainer, tmp_path):
    folder = tmp_path / "own"
    network = AutoModelForCausalLM.from_config(model_config(families.model(family, vocab_size=259)))
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(folder)
    own = compose(["model=local", "model.name=own", f"model.source.path={folder}"]).model
    quantized = base_model.load_quantized(own, trainer, tmp_path).eval()
    dequantized = AutoModelForCausalLM.from_pretrained(
        base_model.dequantized_checkpoint(own, trainer, tmp_path), dtype="auto"
    )
    assert type(dequantized) is type(network)
    assert all(isinstance(layer, Linear4bit) for layer in linear_layers(quantized).values())
    ids = torch.randint(3, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(quantized(ids).logits.float(), dequantized(ids).logits.float(), atol=1e-2)


def own_process(folder):
    (folder / "pid").write_text(str(os.getpid()))


def fail(message):
    raise ValueError(message)


def test_without_a_gpu_no_other_process_is_started(tmp_path):
    base_model.in_own_process(own_process, tmp_path)
    assert (tmp_path / "pid").read_text() == str(os.getpid())


def test_beside_a_gpu_the_work_is_done_in_a_process_that_has_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    base_model.in_own_process(own_process, tmp_path)
    pid = int((tmp_path / "pid").read_text())
    assert pid != os.getpid()
    assert not Path(f"/proc/{pid}").exists()  # with all that it had on the GPU


@pytest.mark.slow
def test_an_error_of_the_other_process_is_raised_here(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="what went wrong"):
        base_model.in_own_process(fail, "what went wrong")


@pytest.mark.slow
def test_the_model_that_another_process_dequantizes_is_the_same(model, trainer, tmp_path, monkeypatch):
    here = base_model.dequantized_checkpoint(model, trainer, tmp_path)
    content = load_file(here / "model.safetensors")
    shutil.rmtree(here)
    base_model.load_quantized(model, trainer, tmp_path)  # before a GPU is claimed, which this process would use
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    there = load_file(base_model.dequantized_checkpoint(model, trainer, tmp_path) / "model.safetensors")
    assert there.keys() == content.keys()
    assert all(torch.equal(there[name], content[name]) for name in content)


def test_converting_leaves_the_random_numbers_alone(model, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    base_model.checkpoint(model, tmp_path)  # which draws a new row for `<pad>`
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("broken", ["weights gone", "weights cut", "one tensor gone", "not a model"])
def test_a_wrong_checkpoint_is_named_and_nothing_is_cached(tiny_checkpoint, tmp_path, broken):
    folder = tmp_path / "wrong"
    shutil.copytree(tiny_checkpoint, folder)
    weights = folder / "model.safetensors"
    if broken == "weights gone":
        weights.unlink()
    elif broken == "weights cut":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif broken == "one tensor gone":
        from safetensors.torch import save_file

        tensors = load_file(weights)
        del tensors["model.norm.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    else:
        (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match=f"{folder} (cannot be loaded|is incomplete)"):
        base_model.checkpoint(local(folder), tmp_path / "cache")
    assert [p.suffix for p in (tmp_path / "cache" / "models").iterdir()] == [".lock"]


def test_an_unknown_kind_of_source_lists_the_known_ones(tmp_path):
    model = OmegaConf.create({"name": "x", "source": {"kind": "ftp"}})
    with pytest.raises(ValueError, match=r"Unknown model.source.kind 'ftp'; use one of .*gguf, hub, local"):
        base_model.checkpoint(model, tmp_path)


def test_a_missing_distribution_says_how_to_get_it(tmp_path):
    source = {"kind": "gguf", "distribution": "no-such-distribution", "file": "x.gguf"}
    model = OmegaConf.create({"name": "x", "source": source})
    with pytest.raises(FileNotFoundError, match="no-such-distribution is not installed; run `make setup`"):
        base_model.checkpoint(model, tmp_path)


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (lambda r: GatedRepoError("401", response=r), PermissionError, "is gated .* set HF_TOKEN"),
        (lambda r: LocalEntryNotFoundError("offline"), ConnectionError, "cannot be fetched .* check the network"),
        (lambda r: httpx.ConnectError("no route"), ConnectionError, "cannot be fetched .* check the network"),
        (lambda r: TimeoutError(errno.ETIMEDOUT, "timed out"), ConnectionError, "cannot be fetched .* the network"),
        *(
            (partial(system_error, code), OSError, f"cannot be written to {re.escape(HUB)}: {said}. Set HF_HOME")
            for code, said in base_model.OF_THE_DISK.items()
        ),
    ],
)
def test_a_model_that_the_hub_does_not_give_is_one_sentence(monkeypatch, tmp_path, raised, expected, message):
    def refuse(*args, **kwargs):
        raise raised(httpx.Response(401, request=httpx.Request("GET", "https://example.org")))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(expected, match=f"'meta-llama/Llama-2-7b-hf' .*{message}"):
        base_model.checkpoint(hub(), tmp_path)


@pytest.mark.slow
def test_smollm2_speaks(tmp_path):
    model = compose(["model=smollm2_135m"]).model
    folder = base_model.checkpoint(model, tmp_path)
    network = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = base_model.load_tokenizer(model, tmp_path)
    inputs = tokenizer("The capital of France is", return_tensors="pt")
    out = network.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert "Paris" in tokenizer.decode(out[0])
    assert network.config.vocab_size == len(tokenizer) == 49_152  # it has a pad token already: none is added
