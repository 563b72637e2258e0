"""The micro base models."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from scripts.cell import pretraining
from scripts.cell.pretraining import micro_tokenizer, pretrained

CONFIGS = Path(__file__).parents[3] / "configs"


def config(name="micro_7b", **source):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        cfg = compose("config", ["profile=micro", f"model={name}"]).model
    cfg.source = OmegaConf.merge(cfg.source, {"steps": 3, "batch_size": 8, "length": 32} | source)
    return cfg


@pytest.mark.parametrize("name", ["micro_7b", "micro_13b"])
def test_the_same_config_gives_the_same_model(name):
    (first, tokenizer), (second, _) = pretrained(config(name)), pretrained(config(name))
    assert all(torch.equal(a, second.state_dict()[key]) for key, a in first.state_dict().items())
    assert first.config.vocab_size == len(tokenizer)
    assert first.config.num_hidden_layers >= 8
    assert (name == "micro_13b") == (first.config.num_key_value_heads < first.config.num_attention_heads)


def test_another_learning_rate_gives_another_model():
    first, second = (pretrained(config())[0], pretrained(config(learning_rate=1e-3))[0])
    assert not torch.equal(first.lm_head.weight, second.lm_head.weight)


def test_it_learns(capsys):
    losses = []
    for steps in (1, 40):
        network, tokenizer = pretrained(config(steps=steps))
        ids = tokenizer("3 + 4 = 7. 7 - 2 = 5. 5 + 1 = 6.", return_tensors="pt").input_ids
        losses.append(network(input_ids=ids, labels=ids).loss.item())
    assert losses[1] < losses[0] - 1


def test_a_vocabulary_of_another_size_is_an_error():
    cfg = config()
    cfg.architecture.vocab_size = 1000
    with pytest.raises(ValueError, match=r"vocab_size=1000, but the tokenizer has \d+ pieces"):
        pretrained(cfg)


def test_the_tokenizer_alone_is_that_of_the_model(monkeypatch):
    text = "Which word is 12 times as long?"
    expected = pretrained(config(steps=1))[1](text).input_ids
    monkeypatch.setattr(pretraining, "_fit", None)  # nothing is trained
    assert micro_tokenizer(config())(text).input_ids == expected


@pytest.mark.parametrize("failing", [False, True])
def test_threads_and_random_numbers_of_the_process_stay_as_they_were(monkeypatch, failing):
    if failing:
        monkeypatch.setattr(pretraining, "_fit", lambda *args: 1 / 0)
    before = torch.get_num_threads()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    torch.set_num_threads(1)
    try:
        with pytest.raises(ZeroDivisionError) if failing else nullcontext():
            pretrained(config(steps=1))
        assert torch.get_num_threads() == 1
        assert torch.equal(torch.rand(3), expected)
    finally:
        torch.set_num_threads(before)
