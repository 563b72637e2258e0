"""The validation loss of the finished adapter, example by example: what it is, and that a kill does not change it."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy

from data_prep.chat import IGNORED
from data_prep.prepare import prepare
from scripts.cell import base_model, runs, trainer, training
from scripts.config import compose


def lines(path):
    return [json.loads(line) for line in (path / runs.HELD_OUT).read_text(encoding="utf-8").splitlines()]


def test_each_example_has_the_loss_that_the_saved_adapter_gives_it_alone(tiny):
    cfg = tiny("trainer.micro_batch_size=2", "trainer.compute_dtype=float32")
    path = training.train(cfg)
    tokenizer = base_model.load_tokenizer(cfg.model, cfg.cache_dir)
    data = prepare(
        cfg.dataset, tokenizer, data=None, max_length=64, validation_size=8, cache_dir=Path(cfg.cache_dir)
    ).validation
    base = base_model.load_quantized(cfg.model, cfg.trainer, cfg.cache_dir)
    model = PeftModel.from_pretrained(base, path / "adapter").eval()
    found = lines(path)
    assert len(found) == len(data) == 8
    for line, example in zip(found, data, strict=True):
        ids, labels = (torch.tensor([example[key]]) for key in ("input_ids", "labels"))
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].float()
        assert line["tokens"] == sum(label != IGNORED for label in example["labels"][1:])
        assert line["loss"] == pytest.approx(cross_entropy(logits, labels[0, 1:], reduction="sum").item(), rel=1e-4)
    per_token = sum(line["loss"] for line in found) / sum(line["tokens"] for line in found)
    assert runs.load(path).info["metrics"]["eval_loss"] == pytest.approx(per_token)


@pytest.mark.parametrize("step", [4, 12, "after the last checkpoint"])
def test_a_kill_does_not_change_them(tiny, tmp_path, monkeypatch, step):
    undisturbed = training.train(tiny())
    cfg = tiny(f"runs_dir={tmp_path / 'killed'}")
    train_step, save = trainer.CellTrainer.training_step, PeftModel.save_pretrained

    def killed_step(self, *args, **kwargs):
        if self.state.global_step + 1 == step:
            raise KeyboardInterrupt
        return train_step(self, *args, **kwargs)

    def killed_save(self, folder, *args, **kwargs):
        if "checkpoint" not in folder and step == "after the last checkpoint":
            raise KeyboardInterrupt
        return save(self, folder, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.CellTrainer, "training_step", killed_step)
        patch.setattr(PeftModel, "save_pretrained", killed_save)
        with pytest.raises(KeyboardInterrupt):
            training.train(cfg)
    path = training.train(cfg)
    assert (path / runs.HELD_OUT).read_bytes() == (undisturbed / runs.HELD_OUT).read_bytes()
    metrics = [runs.load(run).info["metrics"]["eval_loss"] for run in (path, undisturbed)]
    assert metrics[0] == metrics[1]


def test_a_vanilla_row_has_none(tiny_cell, tmp_path):
    common = [override for override in tiny_cell if not override.startswith("method")]
    path = training.train(compose([*common, "method=vanilla_chat", f"runs_dir={tmp_path}"]))
    assert not (path / runs.HELD_OUT).exists()
