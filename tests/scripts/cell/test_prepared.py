"""Settings of speed: none changes what is trained, but for rounding where it is said."""

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from omegaconf import OmegaConf

from scripts.cell import base_model, prepared, runs, trainer, training
from scripts.config import compose

PAPER = ["trainer.dequantize_once=false", "trainer.attention=fused", "trainer.fast_dropout=false"]
SHORT = ["trainer.micro_batch_size=1", "trainer.max_length=128", "trainer.max_steps=4", "trainer.save_steps=4"]


@pytest.fixture
def losses(tiny, tmp_path):
    """`losses(name, *settings)`: those of a training with dropout, and the run directory."""

    def trained(name, *settings):
        path = training.train(
            tiny(f"runs_dir={tmp_path / name}", "trainer.gradient_checkpointing=true", *PAPER, *SHORT, *settings)
        )
        adapter = (path / "adapter" / "adapter_model.safetensors").read_bytes()
        info = runs.load(path).info["metrics"]
        return adapter, [info[key] for key in ("first_loss", "loss", "first_eval_loss", "eval_loss")], path.name

    return trained


@pytest.fixture
def checkpointed(monkeypatch):
    """The number of modules whose forward was recomputed, and the tokens of the batch, at each step."""
    seen = []
    step_of = trainer.Trainer.training_step

    def training_step(self, model, inputs, *args, **kwargs):
        on = sum(getattr(module, "gradient_checkpointing", False) for module in self.model.modules())
        seen.append((inputs["input_ids"].numel(), on > 0))
        return step_of(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer.Trainer, "training_step", training_step)
    return seen


@pytest.mark.parametrize("method", [["method=lora"], ["method=mos", "method.equivalent_rank=4"]])
def test_a_budget_of_tokens_decides_which_batches_are_checkpointed_and_changes_nothing(losses, checkpointed, method):
    every = losses("every", "trainer.uncheckpointed_tokens=0", *method)
    sizes = sorted(size for size, _ in checkpointed)
    assert all(on for _, on in checkpointed)
    assert sizes[0] < sizes[-1]
    checkpointed.clear()
    some = losses("some", f"trainer.uncheckpointed_tokens={sizes[0]}", *method)
    assert {on for _, on in checkpointed} == {True, False}
    assert all(on == (size > sizes[0]) for size, on in checkpointed)
    checkpointed.clear()
    none = losses("none", f"trainer.uncheckpointed_tokens={sizes[-1]}", *method)
    assert not any(on for _, on in checkpointed)
    assert every == some == none  # bytes of the adapter, losses, and the key of the run


@pytest.mark.parametrize("method", [["method=lora"], ["method=mos", "method.equivalent_rank=4"]])
@pytest.mark.parametrize(
    "setting", ["trainer.upcast=false", "trainer.dequantize_once=true", "trainer.attention=products"]
)
def test_another_precision_gives_the_same_losses_to_rounding_and_another_key(losses, method, setting):
    half = ["trainer.compute_dtype=bfloat16", "trainer.learning_rate=0.001"]
    _, expected, key = losses("paper", *half, *method)
    _, found, other = losses("fast", *half, *method, setting)
    assert found == pytest.approx(expected, rel=5e-3)
    assert other != key


def test_weights_dequantized_once_are_those_of_each_product(tiny):
    cfg = tiny("trainer.compute_dtype=bfloat16", "trainer.upcast=false", "method.dropout=0")
    ids = torch.arange(3, 35)[None]
    found = []
    for once in (False, True):
        cfg.trainer.dequantize_once = once
        model = training.adapted_model(cfg)
        layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
        assert bool(layers) == (not once)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(model.train()(input_ids=ids).logits)
    assert torch.equal(*found)


@pytest.mark.parametrize(("upcast", "dtype"), [("true", torch.float32), ("false", torch.bfloat16)])
def test_upcast_decides_the_precision_of_norms_embeddings_and_head(tiny, upcast, dtype):
    cfg = tiny("trainer.compute_dtype=bfloat16", f"trainer.upcast={upcast}", "trainer.dequantize_once=false")
    network = prepared.prepared(base_model.load_quantized(cfg.model, cfg.trainer, cfg.cache_dir), cfg.trainer)
    assert {p.dtype for p in network.parameters() if p.is_floating_point()} == {dtype}


@pytest.mark.parametrize("upcast", ["true", "false"])
@pytest.mark.parametrize("once", ["true", "false"])
def test_the_base_is_frozen(tiny, upcast, once):
    cfg = tiny(f"trainer.upcast={upcast}", f"trainer.dequantize_once={once}")
    network = prepared.prepared(base_model.load_quantized(cfg.model, cfg.trainer, cfg.cache_dir), cfg.trainer)
    assert not any(p.requires_grad for p in network.parameters())


def test_the_budget_is_what_the_plan_says_fits_and_grows_with_the_memory():
    cfg = compose(["profile=paper", "method=lora_r8"])
    small, large = (prepared.fitting_tokens(cfg, prepared.SHARE * gib * 2**30) for gib in (39, 79))
    assert 1000 < small < 3000  # about 2,000 on 40 GB, 5,000 on 80 GB
    assert 4000 < large < 8192
    assert prepared.fitting_tokens(cfg, 2**30) == 0
    assert prepared.fitting_tokens(cfg, 2**40) == 16 * 512
    cfg.trainer.dequantize_once = True  # 9 GiB more of weights
    assert prepared.fitting_tokens(cfg, prepared.SHARE * 39 * 2**30) < small


def test_the_budget_is_asked_of_the_gpu_where_there_is_one(monkeypatch):
    cfg = compose(["profile=paper", "method=lora_r8"])
    assert prepared.uncheckpointed_tokens(cfg) == 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**40, 2**40))
    assert prepared.uncheckpointed_tokens(cfg) == 16 * 512
    cfg.trainer.uncheckpointed_tokens = 100
    assert prepared.uncheckpointed_tokens(cfg) == 100
    cfg.trainer.update(gradient_checkpointing=False, uncheckpointed_tokens=None)
    assert prepared.uncheckpointed_tokens(cfg) == 0


def test_settings_newer_than_a_run_leave_its_key(tiny):
    cfg = tiny(*PAPER)
    older = cfg.copy()
    OmegaConf.set_struct(older, False)
    for name in ("uncheckpointed_tokens", *runs.NEWER):
        del older.trainer[name]
    assert runs.identity(cfg) == runs.identity(older)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.liger=true", "trainer.liger=true needs a GPU"),
        ("gpus_per_run=1", "gpus_per_run=0 to use the CPU all the same"),
        ("trainer.uncheckpointed_tokens=-1", "trainer.uncheckpointed_tokens=-1 is refused"),
    ],
)
def test_what_this_machine_lacks_is_said_before_anything_is_written(tiny, tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        training.train(tiny(override))
    assert not (tmp_path / "runs").exists()


def test_the_peak_memory_of_a_cell_is_its_own():
    ballast = torch.ones(2**27)  # 512 MiB
    assert trainer.peak_memory() > 2**29
    before = trainer.peak_memory()
    del ballast
    trainer.forget_peak_memory()
    assert trainer.peak_memory() < before - 2**28
