"""The validation loss of the finished adapter, example by example: what it is, and that a kill does not change it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy

from data_prep.chat import IGNORED
from data_prep.prepare import prepare
from scripts.cell import base_model, runs, trainer, training
from scripts.config import compose
from tests.scripts.cell.test_training import metrics


def lines(path):
    return [json.loads(line) for line in (path / runs.HELD_OUT_LOSSES).read_text(encoding="utf-8").splitlines()]


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
def test_a_kill_does_not_change_them(tiny, undisturbed, tmp_path, monkeypatch, step):
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
    assert (path / runs.HELD_OUT_LOSSES).read_bytes() == (undisturbed / runs.HELD_OUT_LOSSES).read_bytes()
    metrics = [runs.load(run).info["metrics"]["eval_loss"] for run in (path, undisturbed)]
    assert metrics[0] == metrics[1]


METHODS = [
    *("method=lora", "method=mos", "method=prolora", "method=tied_lora", "method=vera", "method=pure_sharing"),
    *("method=random_scaling", "method=subset_selection"),
]


def first_loss(path):
    return runs.load(path).info["metrics"]["first_eval_loss"]


@pytest.fixture(scope="module")
def untrained(tiny_cell, tmp_path_factory):
    """The run of one step whose cache holds one untrained loss, and that cache."""
    folder = tmp_path_factory.mktemp("untrained")
    places = [f"cache_dir={folder / 'cache'}", f"runs_dir={folder / 'runs'}"]
    return training.train(compose([*tiny_cell, "trainer.max_steps=1", *places])), folder / "cache"


def kept_losses(cache):
    return {path.name for path in (cache / "untrained").iterdir()}


@pytest.mark.parametrize("method", METHODS)
def test_the_untrained_loss_is_the_base_models_whatever_the_method_and_the_seed(tiny, untrained, tmp_path, method):
    base, cache = untrained
    settings = ["method.dropout=0.5", "trainer.max_steps=1", method, "method.r=2", "seed=3"]
    loss = first_loss(training.train(tiny(f"cache_dir={tmp_path / 'cache'}", *settings)))
    # VeRA adds its zero in float32, which leaves the sum there
    assert loss == (pytest.approx(first_loss(base), rel=1e-5) if "vera" in method else first_loss(base))
    assert kept_losses(tmp_path / "cache") == kept_losses(cache)


def test_the_untrained_loss_is_measured_once_and_logged_by_every_cell(tiny, tmp_path, monkeypatch):
    step, seen = trainer.CellTrainer.prediction_step, []

    def counted(self, *args, **kwargs):
        seen.append(self.state.global_step)
        return step(self, *args, **kwargs)

    monkeypatch.setattr(trainer.CellTrainer, "prediction_step", counted)
    cfgs = [tiny(f"cache_dir={tmp_path / 'cache'}", f"seed={seed}") for seed in (0, 1)]
    first, second = map(training.train, cfgs)
    assert seen.count(0) == 2  # eight examples, four at a time
    assert seen.count(12) == 4
    losses = [[line["eval_loss"] for line in metrics(p) if line["step"] == 0] for p in (first, second)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 1


@pytest.mark.parametrize(
    "other",
    [
        *("trainer.validation_size=4", "trainer.max_length=60", "trainer.compute_dtype=float32"),
        *("trainer.quantization.type=fp4", "trainer.attention=fused", "trainer.micro_batch_size=2"),
    ],
)
def test_the_untrained_loss_of_other_data_or_another_arithmetic_is_measured_anew(tiny, untrained, tmp_path, other):
    cache = shutil.copytree(untrained[1], tmp_path / "cache")
    training.train(tiny(f"cache_dir={cache}", "trainer.max_steps=1", other))
    assert len(kept_losses(cache)) == 2


def test_a_vanilla_row_has_none(tiny_cell, tmp_path):
    common = [override for override in tiny_cell if not override.startswith("method")]
    path = training.train(compose([*common, "method=vanilla_chat", f"runs_dir={tmp_path}"]))
    assert not (path / runs.HELD_OUT_LOSSES).exists()
