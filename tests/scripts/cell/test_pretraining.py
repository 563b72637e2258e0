"""The micro base models."""

import random
from contextlib import nullcontext

import pytest
import torch
from omegaconf import OmegaConf

from data_prep.micro.world import World
from scripts.cell import pretraining
from scripts.cell.pretraining import micro_model, micro_tokenizer, pretrained, ship, shipped
from scripts.config import compose


def published(name):
    return compose(["profile=micro", f"model={name}"]).model


def config(name="micro_7b", **source):
    """A micro model of two layers that a second trains."""
    cfg = published(name)
    cfg.architecture.num_hidden_layers = 2
    cfg.source = OmegaConf.merge(cfg.source, {"steps": 3, "batch_size": 8, "length": 32} | source)
    return cfg


@pytest.mark.parametrize("name", ["micro_7b", "micro_13b"])
def test_the_same_config_gives_the_same_model(name):
    (first, tokenizer), (second, _) = pretrained(config(name)), pretrained(config(name))
    assert all(torch.equal(a, second.state_dict()[key]) for key, a in first.state_dict().items())
    assert first.config.vocab_size == len(tokenizer)
    assert published(name).architecture.num_hidden_layers >= 8
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


def test_the_weights_of_the_repository_belong_to_the_present_text_and_config():
    """If this fails, the generated text or the config has changed: `python -m scripts.pretrain model=micro_7b`."""
    assert [path.name for path in pretraining.SHIPPED.iterdir()] == [shipped(published("micro_7b")).name]


def loss_on_unseen_text(network, tokenizer):
    """Nats per token of documents that the pretraining does not draw."""
    rng = random.Random("unseen")
    ids = tokenizer([World(0).document(rng) for _ in range(40)]).input_ids
    with torch.no_grad():
        losses = [network(input_ids=torch.tensor([line]), labels=torch.tensor([line])).loss.item() for line in ids]
    return sum(losses) / len(losses)


def test_the_weights_of_the_repository_know_the_text(monkeypatch):
    monkeypatch.setattr(pretraining, "_fit", None)  # nothing is trained
    assert loss_on_unseen_text(*micro_model(published("micro_7b"))) < 1.0


def test_shipped_weights_are_taken_and_replace_older_ones(monkeypatch, tmp_path):
    monkeypatch.setattr(pretraining, "SHIPPED", tmp_path)
    (tmp_path / "micro_7b-01234567.safetensors").touch()
    (tmp_path / "micro_13b-01234567.safetensors").touch()
    trained = pretrained(config())[0].state_dict()
    assert ship(config()) == shipped(config())
    assert {path.name for path in tmp_path.iterdir()} == {shipped(config()).name, "micro_13b-01234567.safetensors"}
    monkeypatch.setattr(pretraining, "_fit", None)
    assert all(torch.equal(a, trained[key]) for key, a in micro_model(config())[0].state_dict().items())
    with pytest.raises(TypeError):  # other steps, another key: it would pretrain
        micro_model(config(steps=4))


def test_a_published_model_is_not_pretrained():
    with pytest.raises(ValueError, match=r"model=smollm2_135m is published, not pretrained here; choose micro_7b"):
        ship(published("smollm2_135m"))


@pytest.mark.slow
def test_pretraining_again_gives_a_model_as_good():
    again = loss_on_unseen_text(*pretrained(published("micro_7b")))
    assert again < 1.03 * loss_on_unseen_text(*micro_model(published("micro_7b")))
