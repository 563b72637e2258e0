"""MoS beside LoRA under the trainers of TRL, with a new adapter and with one that goes on training."""

import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)

from mos import MosConfig, ProloraConfig, TiedLoraConfig

TARGETS = ["q_proj", "k_proj", "v_proj"]
METHODS = {
    "lora": lambda **settings: LoraConfig(target_modules=TARGETS, **settings),
    "mos": lambda **settings: MosConfig(r=3, target_modules=TARGETS, random_scaling=True, scale_mean=1.0, **settings),
    "prolora": lambda **settings: ProloraConfig(r=4, unshared_rank=1, target_modules=TARGETS, **settings),
    "tied_lora": lambda **settings: TiedLoraConfig(r=6, **settings),
}
PROMPTS = [f"w{i} w{i + 1}" for i in range(0, 16, 2)]
PREFERENCES = Dataset.from_list([{"prompt": p, "chosen": " w30 w31 w32", "rejected": " w40"} for p in PROMPTS])
LABELLED = Dataset.from_list(
    [{"prompt": p, "completion": f" w{30 + i} w31", "label": i % 2 == 0} for i, p in enumerate(PROMPTS)]
)
TEXT = Dataset.from_list([{"text": f"{p} w30 w31"} for p in PROMPTS])
ONLY_PROMPTS = Dataset.from_list([{"prompt": p} for p in PROMPTS])
SAMPLING = {"num_generations": 2, "max_completion_length": 4, "beta": 0.1}


def reward(completions, **_):
    return [float(len(set(completion))) for completion in completions]


ONLINE = {"reward_funcs": reward}
TRAINERS = {
    "dpo": (DPOTrainer, DPOConfig, {}, PREFERENCES, {}),
    "kto": (KTOTrainer, KTOConfig, {}, LABELLED, {}),
    "sft": (SFTTrainer, SFTConfig, {}, TEXT, {}),
    "grpo": (GRPOTrainer, GRPOConfig, SAMPLING, ONLY_PROMPTS, ONLINE),
    "rloo": (RLOOTrainer, RLOOConfig, SAMPLING, ONLY_PROMPTS, ONLINE),
}
WITH_REFERENCE = [name for name in TRAINERS if name != "sft"]


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(60)} | {"[UNK]": 60, "</s>": 61}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="</s>", unk_token="[UNK]")


@pytest.fixture
def trainer(tokenizer, tmp_path):
    """Builds a trainer of two steps; `learning_rate=0` keeps the policy where it starts."""

    def build(name, model, peft_config=None, learning_rate=1e-2):
        trainer_class, arguments_class, settings, data, more = TRAINERS[name]
        common = {
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "logging_steps": 1,
            "disable_tqdm": True,
            "save_strategy": "no",
        }
        arguments = arguments_class(str(tmp_path / "run"), learning_rate=learning_rate, **common, **settings)
        return trainer_class(
            model, args=arguments, train_dataset=data, processing_class=tokenizer, peft_config=peft_config, **more
        )

    return build


def trained(base, method, **settings):
    """An adapter whose update is not zero, under the name that PEFT gives a first one."""
    torch.manual_seed(1)
    zero = {"init_lora_weights": False} if method == "lora" else {"init_weights": False}
    return get_peft_model(base, METHODS[method](**zero, **settings))


def redrawn(base, folder):
    """A trained MoS adapter whose indices no seed of its config draws, as a converted one has."""
    trained(base(), "mos", index_seed=5).save_pretrained(folder)
    config = MosConfig.from_pretrained(folder)
    config.index_seed = 0
    return PeftModel.from_pretrained(base(), folder, config=config, is_trainable=True)


def saved(model, adapter):
    return {key: value.clone() for key, value in get_peft_model_state_dict(model, adapter_name=adapter).items()}


def losses(trainer):
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def assert_equal_adapters(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


@pytest.mark.parametrize("method", METHODS)
def test_dpo_starts_at_ln_2_whether_the_adapter_is_new_or_goes_on(trainer, tiny_llama, method):
    new = trainer("dpo", tiny_llama(), METHODS[method](), learning_rate=0.0)
    going_on = trainer("dpo", trained(tiny_llama(), method), learning_rate=0.0)
    for each in (new, going_on):
        each.train()
        assert losses(each) == pytest.approx([math.log(2)] * 2, abs=1e-4)


@pytest.mark.parametrize("name", WITH_REFERENCE)
@pytest.mark.parametrize("method", METHODS)
def test_the_frozen_reference_equals_the_adapter_that_goes_on(trainer, tiny_llama, name, method):
    model = trainer(name, trained(tiny_llama(), method)).model
    assert_equal_adapters(saved(model, "ref"), saved(model, "default"))
    assert not any(p.requires_grad for key, p in model.named_parameters() if ".ref" in key)


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_the_reference_has_the_indices_of_a_converted_adapter(trainer, tiny_llama, tmp_path, name):
    model = trainer(name, redrawn(tiny_llama, tmp_path / "converted")).model
    reference = saved(model, "ref")
    assert_equal_adapters(reference, saved(model, "default"))
    drawn = saved(trained(tiny_llama(), "mos", index_seed=0), "default")
    indices = [key for key in reference if "index" in key]
    assert indices
    assert any(not torch.equal(reference[key], drawn[key]) for key in indices)


def test_dpo_of_a_converted_adapter_starts_at_ln_2(trainer, tiny_llama, tmp_path):
    dpo = trainer("dpo", redrawn(tiny_llama, tmp_path / "converted"), learning_rate=0.0)
    dpo.train()
    assert losses(dpo) == pytest.approx([math.log(2)] * 2, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("goes_on", [False, True], ids=["new", "goes on"])
@pytest.mark.parametrize("method", ["lora", "mos"])
@pytest.mark.parametrize("name", TRAINERS)
def test_two_steps_train_the_adapter_alone(trainer, tiny_llama, tmp_path, name, method, goes_on):
    """The policy moves, its reference and the base model stay; what is saved gives the logits of what was trained."""
    torch.manual_seed(0)
    start = (trained(tiny_llama(), method), None) if goes_on else (tiny_llama(), METHODS[method]())
    run = trainer(name, *start)
    before = {key: p.detach().clone() for key, p in run.model.named_parameters()}
    run.train()
    assert len(losses(run)) == 2
    assert all(map(math.isfinite, losses(run)))
    changed = {key for key, p in run.model.named_parameters() if not torch.equal(p, before[key])}
    assert changed
    assert all(".default" in key for key in changed)

    run.save_model(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter")
    ids = torch.arange(8)[None]
    torch.testing.assert_close(loaded(ids).logits, run.model.eval()(ids).logits)
