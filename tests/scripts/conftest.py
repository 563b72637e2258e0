"""A random Llama with a byte tokenizer and a few conversations: every part of the spine in a second or two."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scripts.config import compose


@pytest.fixture(scope="package", autouse=True)
def _no_tracking():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        yield


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """As LLaMA2: `<s>` in front, `</s>`, and no pad token."""
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    vocabulary = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,  # of 32: the smallest that vLLM serves on a CPU
            num_key_value_heads=1,
            max_position_embeddings=256,
        )
    )
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def conversations(tmp_path_factory):
    path = tmp_path_factory.mktemp("conversations") / "messages.jsonl"
    sums = [(a, b) for a in range(8) for b in range(8)]
    rows = [[f"What is {a} plus {b}{'?' * a}", f"The answer is {a + b}."] for a, b in sums]
    lines = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="session")
def tiny_cell(tiny_checkpoint, conversations, tmp_path_factory):
    """The overrides of a cell that trains in a second; `runs_dir` is left to the test."""
    return [
        "profile=smol",
        "model=local",
        "model.name=tiny",
        f"model.source.path={tiny_checkpoint}",
        f"dataset.source.messages={conversations}",
        "method=lora",
        "method.r=4",
        f"cache_dir={tmp_path_factory.mktemp('cache')}",
        "trainer.max_steps=12",
        "trainer.batch_size=4",
        "trainer.validation_size=8",
        "trainer.max_length=64",
        "trainer.eval_steps=5",
        "trainer.save_steps=3",
        "trainer.logging_steps=2",
        "trainer.learning_rate=0.01",
    ]


@pytest.fixture
def tiny(tiny_cell, tmp_path):
    """`tiny(*overrides)`: the composed config of a cell whose runs go to the test's own folder."""
    return lambda *overrides: compose([*tiny_cell, f"runs_dir={tmp_path / 'runs'}", *overrides])
