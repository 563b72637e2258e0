"""PEFT's own tests, from the source distribution of the installed version, with MosConfig (see `peft_suite.py`).

What runs, of each file: every test that takes a method as a parameter, with MoS as that method; and three classes that
name LoRA in their body, with MoS in its place. PEFT's models come from the hub; tiny random ones of the same names and
architectures stand in a folder here, which transformers reads instead. What is left out of these, and why, is
`peft_suite.LEFT_OUT` and, for tests that skip themselves, `SKIPPED`. PEFT's other files are about one method each, or
need a GPU or the hub: `test_torch_compile.py` (marked for one GPU; its data come from the hub), `test_vision_models.py`
(Conv2d, which MoS does not adapt).
"""

import os
import re
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import pytest
from peft import LoraConfig
from peft_suite import CASES, HARD_WIRED
from tiny_models import BERT, LLAMA_LIKE, VOCABULARY, hf, tiny

HUB = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": "OPT",
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": "GPT-2",
    "hf-internal-testing/tiny-random-gpt2": "GPT-2",
    "peft-internal-testing/tiny-random-GPTJForCausalLM": "GPT-J",
    "trl-internal-testing/tiny-random-LlamaForCausalLM": "Llama",
    "peft-internal-testing/tiny-random-LlamaForCausalLM": "Llama",
    "peft-internal-testing/tiny-dummy-qwen2": "Qwen2",
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": "Gemma 3",
    "trl-internal-testing/tiny-GptOssForCausalLM": "gpt-oss",
    "peft-internal-testing/tiny-random-GPTNeoXForCausalLM": "GPT-NeoX",
    "peft-internal-testing/tiny-random-t5": "T5",
    "peft-internal-testing/tiny-random-T5ForConditionalGeneration-calibrated": "T5",
    "peft-internal-testing/tiny-random-BartForConditionalGeneration": "BART",
    "peft-internal-testing/tiny-random-DebertaV2Model": "DeBERTa-v2",
}
# Why a selected test may skip itself: what its reason says.
SKIPPED = {
    "requires a hardware accelerator|requires a GPU|requires CUDA": "no accelerator here",
    "Bnb 4 bit quant with CPU": "merging into 4 bits is not exact; tests/mos/test_base.py bounds the error",
    "pre-quantized": "GPTQ has no unquantized twin",
    "Test not applicable for|does not apply to|not prompt learning": "prompt learning, IA3, AdaLoRA or aLoRA only",
    "Mixed adapter batches not supported": "a second check by class, in the files for LoRA's relatives",
    "Testing bias warnings only for": "the words of LoRA's warning",
    "Multiple active adapters with modules_to_save": "PEFT serves none",
    "layers have no bias term": "meant for BEFT, but skips every method",
    "FSDP \\+ target_param": "skipped for every method",
    "Merging with target_parameters": "skipped for every method; tests/mos/test_experts.py merges experts",
}
PACKAGES = ["parameterized", "diffusers"]  # which PEFT's tests import


def other_models():
    """Models that only PEFT's suite asks for, some of a number of blocks that its tests expect."""
    opt = {"hidden_size": 128, "word_embed_proj_dim": 128, "ffn_dim": 256, "num_attention_heads": 4}
    bloom = hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=128, n_layer=5, n_head=4)
    shapes = {"vocab_size": VOCABULARY, "num_hidden_layers": 12, "max_position_embeddings": 64}
    return {
        "peft-internal-testing/opt-125m": hf.OPTForCausalLM(hf.OPTConfig(**opt, **shapes)),
        "peft-internal-testing/tiny-random-BloomForCausalLM": hf.BloomForCausalLM(bloom),
        "peft-internal-testing/tiny-random-BertModel": hf.BertModel(hf.BertConfig(**BERT)),
        "peft-internal-testing/tiny-random-RobertaModel": hf.RobertaModel(hf.RobertaConfig(**BERT)),
        "peft-internal-testing/tiny-random-DebertaModel": hf.DebertaModel(hf.DebertaConfig(**BERT)),
        "peft-internal-testing/tiny-random-BertForSequenceClassification": hf.BertForSequenceClassification(
            hf.BertConfig(**BERT)
        ),
        "peft-internal-testing/tiny-random-RobertaForSequenceClassification": hf.RobertaForSequenceClassification(
            hf.RobertaConfig(**BERT)
        ),
        "trl-internal-testing/tiny-LlamaForSequenceClassification-3.2": hf.LlamaForSequenceClassification(
            hf.LlamaConfig(**LLAMA_LIKE)
        ),
    }


def pip(*arguments):
    """Run pip, or skip the test where there is no network."""
    run = subprocess.run([sys.executable, "-m", "pip", *arguments, "--no-deps"], capture_output=True, text=True)
    if run.returncode:
        pytest.skip(f"PEFT's tests come from PyPI, which pip does not reach: {run.stderr.strip()[-300:]}")


@pytest.fixture(scope="session")
def suite(tmp_path_factory):
    """A folder with PEFT's tests, the packages they import, and the models they load."""
    folder = tmp_path_factory.mktemp("peft")
    release = f"peft-{version('peft')}"
    pip("download", "-q", "--no-binary", ":all:", "-d", str(folder), release.replace("-", "=="))
    pip("install", "-q", "--target", str(folder / "site"), *PACKAGES)
    with tarfile.open(folder / f"{release}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    root = folder / release
    (root / "tests" / "__init__.py").touch()  # they import one another as a package, whose file is not distributed
    for name, architecture in HUB.items():
        tiny(architecture).save_pretrained(root / name)
    for name, model in other_models().items():
        model.save_pretrained(root / name)
    LoraConfig().save_pretrained(str(root / "peft-internal-testing/tiny-opt-lora-revision"))
    return root


def run(suite, file):
    """Run one of PEFT's files with the plugin; returns the result of each test and the end of the output."""
    report = suite / f"{file}.xml"
    here = Path(__file__).parent
    paths = [here, here.parents[1], suite.parent / "site"]
    options = ["-p", "peft_suite", "-c", os.devnull, "--rootdir", ".", "-q", "--tb=short", f"--junitxml={report}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"tests/{file}.py"],
        cwd=suite,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths)), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    output = done.stdout[-6000:] + done.stderr[-2000:]
    assert report.exists(), output
    return list(ElementTree.parse(report).iter("testcase")), output


@pytest.mark.slow
@pytest.mark.parametrize("file", [*CASES, *HARD_WIRED])
def test_no_test_of_peft_fails_for_mos(suite, file):
    cases, output = run(suite, file)
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    assert cases, output
    assert not failed, output
    reasons = {case.find("skipped").get("message") for case in cases if case.find("skipped") is not None}
    assert not [reason for reason in reasons if not any(re.search(known, reason) for known in SKIPPED)]
