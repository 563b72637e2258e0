"""MoS on tiny random models of many architectures; the table in docs/mos.md is the list of this file."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny_models import IMAGE_TOKEN, VOCABULARY, tiny

from mos import MosConfig, export_lora

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
IDS = torch.arange(3, 27).view(2, 12) % IMAGE_TOKEN  # (batch, length)
RANK = 4


class Row(NamedTuple):
    """A line of the table: an architecture, what is particular about it, and what vLLM says to its exported adapter."""

    name: str
    what: str
    vllm: str
    parameters: list[str] | None = None  # what "all-linear" does not name by itself

    def line(self) -> str:
        everything = "yes | yes | yes | yes"  # a failing test removes the row
        return f"| {self.name} | {self.what} | {everything} | {self.vllm} |"


TAKEN, REFUSED, NOT_TRIED = "yes", "refuses", "-"
ROWS = [
    Row("Llama", "grouped queries", TAKEN),
    Row("Mistral", "sliding window", TAKEN),
    Row("Qwen2", "tied embeddings, biases", TAKEN),
    Row("Qwen3", "norms of queries and keys", TAKEN),
    Row("Gemma 2", "sliding window in every other block, tied embeddings", TAKEN),
    Row("Gemma 3", "sliding window, tied embeddings", TAKEN),
    Row("Phi 3", "fused projections: `qkv_proj`, `gate_up_proj`", TAKEN),
    Row("GPT-NeoX", "fused `query_key_value`", TAKEN),
    Row("GPT-2", "`Conv1D`, fused `c_attn`, tied embeddings", REFUSED),
    Row("GPT-J", "parallel blocks", REFUSED),
    Row("OPT", "biases, tied embeddings", TAKEN),
    Row("BLOOM", "fused `query_key_value`, tied embeddings", REFUSED),
    Row("Mixtral", "experts and router as parameters", NOT_TRIED),
    Row("Qwen2-MoE", "experts as parameters, a shared expert", NOT_TRIED, EXPERTS),
    Row("Qwen3-MoE", "experts and router as parameters", NOT_TRIED),
    Row("DeepSeek-V3", "latent attention, a dense block, experts as parameters, a shared expert", NOT_TRIED),
    Row("gpt-oss", "transposed experts with biases, sliding window, sinks", NOT_TRIED, EXPERTS),
    Row("T5", "encoder-decoder, tied embeddings", NOT_TRIED),
    Row("BART", "encoder-decoder, biases", NOT_TRIED),
    Row("BERT", "encoder", NOT_TRIED),
    Row("RoBERTa", "encoder", NOT_TRIED),
    Row("DeBERTa-v2", "encoder, relative positions", NOT_TRIED),
    Row("ViT", "images", NOT_TRIED),
    Row("Llava", "vision and language", NOT_TRIED),
]
HEAD = """| architecture | what is particular | trains | saves | merges | exports | vLLM |
| --- | --- | --- | --- | --- | --- | --- |
"""


def inputs(name):
    """What the architecture reads, with labels."""
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    if name == "ViT":
        return {"pixel_values": pixels, "labels": torch.tensor([0, 1])}
    if name == "Llava":
        return {"input_ids": torch.cat([torch.full((2, 4), IMAGE_TOKEN), IDS], 1), "pixel_values": pixels}
    return {"input_ids": IDS, "labels": IDS}


def adapted(row, base, **settings):
    torch.manual_seed(1)
    targets = {"target_modules": "all-linear", "target_parameters": row.parameters}
    config = MosConfig(**{"r": RANK, "equivalent_rank": 2, "init_weights": False} | targets | settings)
    return get_peft_model(base, config).eval()


def logits(model, name):
    return model(**inputs(name)).logits


def loss(model, name):
    """The model's own loss; for Llava, which has labels for images too, that of the next token."""
    output = model(**inputs(name))
    if output.loss is not None:
        return output.loss
    return torch.nn.functional.cross_entropy(output.logits[:, 4:-1].flatten(0, 1), IDS[:, 1:].flatten())


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:'all-linear' leaves out", "ignore:.*tie_word_embeddings")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_trains_saves_merges_and_exports(row, tmp_path):
    model = adapted(row, tiny(row.name))
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(6):
        value = loss(model.train(), row.name)
        losses.append(value.item())
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    changed = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    assert changed == {key for key, p in model.named_parameters() if p.requires_grad}

    expected = logits(model.eval(), row.name)
    assert (expected - logits(tiny(row.name), row.name)).abs().max() > 1e-2
    model.save_pretrained(tmp_path / "mos")
    assert_same(logits(PeftModel.from_pretrained(tiny(row.name), tmp_path / "mos"), row.name), expected)

    check = None if row.name == "ViT" else tiny(row.name)  # which reads no tokens
    export_lora(tmp_path / "mos", tmp_path / "lora", check=check)
    assert_same(logits(PeftModel.from_pretrained(tiny(row.name), tmp_path / "lora"), row.name), expected)
    assert_same(logits(model.merge_and_unload(safe_merge=True), row.name), expected)


def greedy(model, tokens):
    return [
        model.generate(row[None], max_new_tokens=tokens, do_sample=False, eos_token_id=None)[0, len(row) :].tolist()
        for row in IDS
    ]


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if row.vllm == TAKEN], ids=lambda row: row.name)
def test_vllm_decodes_what_transformers_does(row, tmp_path):
    pytest.importorskip("vllm")
    tiny(row.name).save_pretrained(tmp_path / "base")
    model = adapted(row, tiny(row.name), r=8, equivalent_rank=8, private_rank=0, alpha=64)
    model.save_pretrained(tmp_path / "mos")
    export_lora(tmp_path / "mos", tmp_path / "lora", check=tiny(row.name))
    script = Path(__file__).with_name("served.py")
    run = subprocess.run(
        [sys.executable, script, tmp_path / "base", tmp_path / "lora", "8"],
        input=json.dumps(IDS.tolist()),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    served = json.loads(run.stdout.splitlines()[-1])
    with model.disable_adapter():
        assert served["base"] == greedy(model, 8)
    assert served["adapter"] == greedy(model, 8)
    assert served["adapter"] != served["base"]


def test_the_table_is_this_list(pytestconfig):
    page = (pytestconfig.rootpath / "docs" / "mos.md").read_text(encoding="utf-8")
    assert HEAD + "\n".join(row.line() for row in ROWS) + "\n\n" in page
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert VOCABULARY > IMAGE_TOKEN
