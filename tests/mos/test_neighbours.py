"""MoS with what surrounds a PEFT method: direct injection, compilers, quantizers, trainers, other architectures."""

import copy
import pickle

import pytest
import torch
from datasets import Dataset
from peft import (
    AutoPeftModelForCausalLM,
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    prepare_model_for_kbit_training,
    set_peft_model_state_dict,
)
from transformers import (
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from mos import MosConfig

SETTINGS = {"r": 3, "init_weights": False, "task_type": "CAUSAL_LM"}


def adapted(base, **settings):
    torch.manual_seed(1)
    return get_peft_model(base, MosConfig(**SETTINGS | settings)).eval()


def largest_difference(a, b):
    return (a - b).abs().max()


def test_injection_by_state_dict(tiny_llama, ids):
    """The layers come from the keys, whatever the config targets; none of the adapter's keys is left over."""
    model = adapted(tiny_llama())
    state = {k.removeprefix("base_model.model."): v for k, v in get_peft_model_state_dict(model).items()}
    base = inject_adapter_in_model(MosConfig(r=3, target_modules=["q_proj"]), tiny_llama(), state_dict=state)
    result = set_peft_model_state_dict(base, state)
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if "mos_" in key]
    assert torch.equal(base(ids).logits, model(ids).logits)


def test_transformers_adds_saves_loads_and_deletes(tiny_llama, ids, tmp_path):
    model = tiny_llama()
    model.add_adapter(MosConfig(**SETTINGS))
    expected = model.eval()(ids).logits
    model.save_pretrained(tmp_path)
    loaded = tiny_llama()
    loaded.load_adapter(str(tmp_path))
    assert torch.equal(loaded(ids).logits, expected)
    loaded.delete_adapter("default")
    assert torch.equal(loaded(ids).logits, tiny_llama()(ids).logits)


def test_auto_class_on_a_base_in_several_files(tiny_llama, ids, tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base", max_shard_size="50KB")
    assert len(list((tmp_path / "base").glob("model-*.safetensors"))) > 1
    model = adapted(LlamaForCausalLM.from_pretrained(tmp_path / "base"))
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_pickle(tiny_llama, ids):
    model = adapted(tiny_llama())
    with torch.no_grad():
        expected = model(ids).logits  # fills the caches
    assert torch.equal(pickle.loads(pickle.dumps(model))(ids).logits, expected)
    pickle.loads(pickle.dumps(model.get_base_model().model.layers[2]))


def test_saved_in_half_precision_and_loaded_in_single(tiny_llama, ids, tmp_path):
    model = adapted(tiny_llama()).bfloat16()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    pools = [p for n, p in loaded.named_parameters() if "mos_" in n]
    assert {p.dtype for p in pools} == {torch.float32}
    assert largest_difference(loaded(ids).logits, model.float()(ids).logits) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False])
def test_compiled_without_graph_breaks(tiny_llama, ids, training):
    model = adapted(tiny_llama()).train(training)
    plain = copy.deepcopy(model)
    plain(ids, labels=ids).loss.backward()
    torch.compile(model, fullgraph=True, backend="aot_eager")(ids, labels=ids).loss.backward()
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        assert not a.requires_grad or torch.allclose(a.grad, b.grad, atol=1e-7)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(ids).logits
    torch.testing.assert_close(compiled, plain(ids).logits)


def test_8bit_base(tiny_llama, ids, tmp_path):
    tiny_llama(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    quantized = BitsAndBytesConfig(load_in_8bit=True)
    model = adapted(LlamaForCausalLM.from_pretrained(tmp_path, quantization_config=quantized))
    model.train()(ids, labels=ids).loss.backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters() if p.requires_grad)
    layer = model.eval().get_base_model().model.layers[1].self_attn.q_proj
    before = layer.get_base_weight()
    merged = before + layer.get_delta_weight("default")
    for change, expected in ((model.merge_adapter, merged), (model.unmerge_adapter, before)):
        change()  # quantizes anew: as close as int8 gets
        assert largest_difference(layer.get_base_weight(), expected) < 0.02 * merged.abs().max()
    assert largest_difference(merged, before) > 0.2 * merged.abs().max()


def test_4bit_training_as_qlora_prepares_it(tiny_llama_4bit, ids):
    base = prepare_model_for_kbit_training(tiny_llama_4bit())
    model = adapted(base).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model(ids, labels=ids).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]


def test_gpt2_merges(ids):
    torch.manual_seed(0)
    base = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=16, n_embd=32, n_layer=2, n_head=2)).eval()
    model = adapted(copy.deepcopy(base), r=2, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True)
    expected = model(ids).logits
    assert largest_difference(expected, base(ids).logits) > 1e-3
    torch.testing.assert_close(model.merge_and_unload(safe_merge=True)(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_encoder_decoder_with_beams_and_mixed_batch(ids):
    """Encoder and decoder have pools of their own; the encoder sees each row once, the decoder once per beam."""
    torch.manual_seed(0)
    shapes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    base = T5ForConditionalGeneration(T5Config(decoder_start_token_id=0, **shapes))
    model = adapted(base, r=2, task_type="SEQ_2_SEQ_LM")
    hosts = [name for name, _ in model.named_parameters() if "mos_A" in name]
    assert len(hosts) == 6  # q and v of encoder, decoder and cross-attention
    settings = {"num_beams": 2, "max_new_tokens": 4, "do_sample": False}
    mixed = model.generate(input_ids=ids[:2], adapter_names=["default", "__base__"], **settings)
    own = model.generate(input_ids=ids[:1], **settings)
    with model.disable_adapter():
        plain = model.generate(input_ids=ids[1:2], **settings)
    assert mixed.tolist() == [*own.tolist(), *plain.tolist()]


def test_trainer_resumes(tiny_llama, tmp_path):
    """Transformers' Trainer trains the pools and goes on from its checkpoint to the same end."""
    data = Dataset.from_dict({"input_ids": [[i, i + 1, i + 2] for i in range(16)]})
    data = data.map(lambda row: {"labels": row["input_ids"]})
    settings = {
        "max_steps": 4,
        "save_steps": 2,
        "per_device_train_batch_size": 4,
        "report_to": [],
        "disable_tqdm": True,
    }
    ends = []
    for checkpoint in (None, str(tmp_path / "checkpoint-2")):
        model = adapted(tiny_llama(), index_seed=0 if checkpoint is None else 1)  # what is saved counts
        arguments = TrainingArguments(str(tmp_path), learning_rate=1e-2, use_cpu=True, **settings)
        Trainer(model, arguments, train_dataset=data).train(resume_from_checkpoint=checkpoint)
        ends.append(get_peft_model_state_dict(model))
    start = get_peft_model_state_dict(adapted(tiny_llama()))
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name
        assert torch.equal(value, start[name]) == (not name.endswith(("mos_A", "mos_B")))


@pytest.mark.slow
def test_trl(tiny_llama, tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(60)} | {"[UNK]": 60, "</s>": 61}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="</s>", unk_token="[UNK]")
    data = Dataset.from_dict({"text": [f"w{i} w{i + 1} w{i + 2}" for i in range(16)]})
    arguments = SFTConfig(str(tmp_path), max_steps=2, report_to=[], use_cpu=True, bf16=False)
    trainer = SFTTrainer(
        tiny_llama(), arguments, train_dataset=data, processing_class=tokenizer, peft_config=MosConfig(**SETTINGS)
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter")
    ids = torch.arange(8)[None]
    assert torch.equal(loaded(ids).logits, trainer.model.eval()(ids).logits)
