"""MoS from start to end on a tiny random Llama: run it top to bottom, `python docs/example.py`; it takes seconds."""

# %% A base model. Any transformers model with linear layers will do; this one needs no download.
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import mos

sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 8, "num_attention_heads": 4}
torch.manual_seed(0)
base = LlamaForCausalLM(LlamaConfig(vocab_size=128, **sizes))
tokens = torch.arange(64).view(2, 32)  # (batch, length)

# %% MoS at rank 8 on the budget of LoRA at rank 2.
config = mos.MosConfig(r=8, equivalent_rank=2, shards_per_vector=4, private_rank=1, task_type="CAUSAL_LM")
model = get_peft_model(base, config)
model.print_trainable_parameters()

# %% Train. B starts at zero, so the first loss is the base model's.
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
for step in range(31):
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step % 10 == 0:
        print(f"step {step:2d}  loss {loss.item():.3f}")

# %% Save, load, and export to a standard LoRA of rank 8: the three give the same logits.
model.eval()
with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    model.save_pretrained(f"{folder}/adapter")
    mos.export_lora(f"{folder}/adapter", f"{folder}/lora")
    expected = model(input_ids=tokens).logits
    plain = model.unload()
    for name in ("adapter", "lora"):
        loaded = PeftModel.from_pretrained(plain, f"{folder}/{name}").eval()
        torch.testing.assert_close(loaded(input_ids=tokens).logits, expected, rtol=1e-4, atol=1e-4)
        plain = loaded.unload()
    print("exported rank:", LoraConfig.from_pretrained(f"{folder}/lora").r)
