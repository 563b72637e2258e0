"""Training: what a run directory holds, determinism, resumption, and what happens when something is wrong."""

import hashlib
import inspect
import json
import math
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import get_args

import pytest
import torch
from omegaconf import OmegaConf
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments, get_scheduler

from data_prep import sources
from data_prep.download import raw_folder
from scripts.cell import base_model, runs, trainer, training
from scripts.cell.settings import Scheduler, TrainerSettings

ROOT = Path(__file__).parents[3]


def adapter_hash(path):
    return hashlib.sha256((path / "adapter" / "adapter_model.safetensors").read_bytes()).hexdigest()


def trained_tensors(path):
    """Without the frozen indices and scales of MoS."""
    tensors = load_file(path / "adapter" / "adapter_model.safetensors")
    return [value for name, value in tensors.items() if not name.endswith((".mos_index", ".mos_scale"))]


def metrics(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def repeatable(path):
    """The metrics without what a clock or the memory allocator decides."""
    measured = ("seconds", "memory_gib", "runtime", "per_second")
    return [{k: v for k, v in line.items() if not k.endswith(measured)} for line in metrics(path) if "loss" in line]


@pytest.fixture
def crash(monkeypatch):
    """`crash(step)`: training stops with an error inside this step."""
    step_of = trainer.CellTrainer.training_step

    def at(step):
        def training_step(self, *args, **kwargs):
            if self.state.global_step + 1 == step:
                raise KeyboardInterrupt
            return step_of(self, *args, **kwargs)

        monkeypatch.setattr(trainer.CellTrainer, "training_step", training_step)

    yield at


def test_a_finished_run_holds_what_the_architecture_says(tiny):
    path = training.train(tiny())
    run = runs.load(path)
    kept = [".lock", "adapter", "config.yaml", "metrics.jsonl", "run.json", "validation.jsonl"]
    assert sorted(p.name for p in path.iterdir()) == kept
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {p.name for p in run.adapter.iterdir()}
    assert run.cfg.trainer.max_steps == 12
    assert run.info["status"] == "finished"
    assert run.info["seed"] == 0
    assert run.info["metrics"]["loss"] < 0.9 * run.info["metrics"]["first_loss"]
    assert run.info["metrics"]["eval_loss"] < run.info["metrics"]["first_eval_loss"]
    assert run.info["data"]["train"] == 56
    assert run.info["trainable_parameters"] == 2 * 4 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    assert run.info["hardware"]["torch_threads"] == torch.get_num_threads()


def test_losses_are_logged_on_the_way_and_validation_at_the_end(undisturbed):
    lines = metrics(undisturbed)  # every second step, the first, and 3 and 9 with their checkpoints
    assert [line["step"] for line in lines if "loss" in line] == [
        1,
        2,
        3,
        4,
        6,
        8,
        9,
        10,
        12,
    ]  # with 3 and 9, the checkpoints
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 5, 10, 12]
    rates = {line["step"]: line["learning_rate"] for line in lines if "loss" in line}
    assert rates[2] == 0.01  # one step of warm-up, 3% of 12 rounded up; then linearly down
    assert rates[12] < rates[6] < rates[2]


def test_the_adapter_is_saved_in_float32_and_loads_onto_the_base(tiny):
    cfg = tiny()
    path = training.train(cfg)
    base = base_model.load_quantized(cfg.model, cfg.trainer, cfg.cache_dir)
    model = PeftModel.from_pretrained(base, path / "adapter")
    assert {p.dtype for name, p in model.named_parameters() if "lora_" in name} == {torch.float32}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tiny, undisturbed, tmp_path):
    again = training.train(tiny(f"runs_dir={tmp_path / 'again'}"))
    other = training.train(tiny("seed=1"))
    assert adapter_hash(again) == adapter_hash(undisturbed)
    assert repeatable(again) == repeatable(undisturbed)
    assert adapter_hash(other) != adapter_hash(undisturbed)


@pytest.mark.parametrize("rare", ["trainer.eval_steps=12", "trainer.save_steps=12", "trainer.logging_steps=1"])
def test_looking_more_or_less_often_changes_neither_key_nor_bytes(tiny, undisturbed, tmp_path, rare):
    path = training.train(tiny(f"runs_dir={tmp_path / 'rare'}", rare))
    assert path.name == undisturbed.name
    assert adapter_hash(path) == adapter_hash(undisturbed)


def resumed(cfg, crash, step):
    """The run of a training that crashed inside this step and was started again."""
    crash(step)
    with pytest.raises(KeyboardInterrupt):
        training.train(cfg)
    crash(None)
    assert not runs.is_finished(runs.run_dir(cfg))
    return training.train(cfg)


@pytest.mark.parametrize("step", [2, 4, 9, 12])
def test_a_resumed_run_ends_with_the_same_bytes_and_metrics(tiny, undisturbed, tmp_path, crash, step):
    path = resumed(tiny(f"runs_dir={tmp_path / 'crashed'}"), crash, step)
    assert adapter_hash(path) == adapter_hash(undisturbed)
    assert repeatable(path) == repeatable(undisturbed)


@pytest.mark.parametrize("method", [["method=lora"], ["method=mos", "method.equivalent_rank=4"]])
def test_a_resumed_run_of_a_bfloat16_adapter_is_the_same_too(tiny, tmp_path, crash, method):
    """PEFT loads an adapter to train in float32, by parameters that the trainer does not know."""
    overrides = ["trainer.adapter_dtype=bfloat16", *method]
    whole = training.train(tiny(*overrides))
    path = resumed(tiny(f"runs_dir={tmp_path / 'crashed'}", *overrides), crash, 9)
    assert {value.dtype for value in trained_tensors(path)} == {torch.bfloat16}
    assert adapter_hash(path) == adapter_hash(whole)
    assert repeatable(path) == repeatable(whole)


@pytest.mark.parametrize("content", ["", '{"global_step": 9, "log_h', None])
def test_a_half_written_checkpoint_is_ignored(tiny, undisturbed, tmp_path, crash, content):
    cfg = tiny(f"runs_dir={tmp_path / 'torn'}")
    crash(11)
    with pytest.raises(KeyboardInterrupt):
        training.train(cfg)
    crash(None)
    checkpoints = runs.run_dir(cfg) / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["checkpoint-6", "checkpoint-9"]
    state = checkpoints / "checkpoint-9" / "trainer_state.json"
    state.unlink()
    if content is not None:
        state.write_text(content)
    assert training.last_checkpoint(checkpoints).name == "checkpoint-6"
    assert adapter_hash(training.train(cfg)) == adapter_hash(undisturbed)


def test_a_finished_run_is_left_as_it_is(tiny, undisturbed, monkeypatch, capsys):
    before = (undisturbed / "run.json").read_bytes()
    monkeypatch.setattr(training, "load_tokenizer", None)
    (undisturbed / "checkpoints").mkdir()  # as if killed just before they were removed
    assert training.train(tiny()) == undisturbed
    assert (undisturbed / "run.json").read_bytes() == before
    assert not (undisturbed / "checkpoints").exists()
    assert "finished already" in capsys.readouterr().out


def test_a_run_that_downloads_its_data_is_found_again(tiny, monkeypatch):
    """The key of a run holds the content of its data, so the data must be here before the run has a folder."""
    rows = [{"instruction": f"Add {n} and 1.", "input": "", "output": f"It is {n + 1}."} for n in range(64)]

    def downloaded(source, cache_dir):
        folder = raw_folder(source, cache_dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "code_alpaca_20k.json").write_text(json.dumps(rows), encoding="utf-8")
        return folder

    monkeypatch.setattr(sources, "downloaded", downloaded)
    cfg = tiny("dataset=code_alpaca", "dataset.source.messages=null", "trainer.max_steps=1")
    planned = runs.run_dir(cfg)
    first = training.train(cfg)
    assert first == runs.run_dir(cfg) != planned
    assert training.train(cfg) == first
    assert [path.name for path in first.parent.iterdir()] == [first.name]


@pytest.mark.parametrize("method", ["vanilla_chat", "vanilla_nochat"])
def test_a_vanilla_row_is_a_finished_run_without_an_adapter(tiny_cell, tmp_path, method):
    from scripts.config import compose

    overrides = [o for o in tiny_cell if not o.startswith("method")]
    path = training.train(compose([*overrides, f"method={method}", f"runs_dir={tmp_path}"]))
    run = runs.load(path)
    assert path.name.startswith(f"{method}-r0-none-seed0-")
    assert run.adapter is None
    assert run.info["dataset"] is None


def test_accumulated_small_batches_train_as_one_large_batch(tiny, undisturbed):
    path = training.train(tiny("trainer.micro_batch_size=2"))
    losses = [[line["loss"] for line in metrics(p) if "loss" in line] for p in (path, undisturbed)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_the_loss_is_the_mean_over_labelled_tokens(tiny):
    model = training.adapted_model(tiny("trainer.dequantize_once=false")).eval()  # nothing casts for it here
    ids = torch.randint(3, 200, (3, 16), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[0, :9], labels[1, :4], labels[2, 12:] = -100, -100, -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    with torch.no_grad():
        loss = trainer.CellTrainer.compute_loss(None, model, batch)
        logits = model(input_ids=ids).logits[:, :-1]
    expected = cross_entropy(logits.flatten(0, 1).float(), labels[:, 1:].flatten())  # the plain way: all logits
    assert loss == pytest.approx(expected.item(), rel=1e-3)


def test_operations_are_estimated_as_transformers_does(tiny, undisturbed, monkeypatch, tmp_path):
    monkeypatch.delattr(trainer.CellTrainer, "floating_point_ops")
    own, theirs = (
        metrics(path)[-1]["total_flos"] for path in (undisturbed, training.train(tiny(f"runs_dir={tmp_path}")))
    )
    assert own == theirs > 0


def test_walking_through_the_modules_once_changes_no_byte(tiny, undisturbed, monkeypatch, tmp_path):
    monkeypatch.setattr(trainer, "walked_once", nullcontext)
    path = training.train(tiny(f"runs_dir={tmp_path}"))
    assert adapter_hash(path) == adapter_hash(undisturbed)
    assert repeatable(path) == repeatable(undisturbed)


def test_a_model_that_is_walked_once_changes_its_mode_and_is_itself_again_afterwards(tiny):
    model = training.adapted_model(tiny())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = len(list(model.parameters()))
    with pytest.raises(KeyError), trainer.walked_once(model):
        assert list(map(id, model.parameters())) == list(map(id, trained))
        for training_mode in (False, True, True):
            assert model.train(training_mode) is model
            assert {module.training for module in model.modules()} == {training_mode}
        model.eval()
        assert not any(module.training for module in model.modules())
        raise KeyError
    assert len(list(model.parameters())) == before > len(trained)
    assert model.train().training


def test_a_loss_that_is_not_finite_stops_with_a_sentence(tiny):
    cfg = tiny("trainer.learning_rate=1e30")
    with pytest.raises(FloatingPointError, match=r"The loss is .* at step \d+; lower trainer.learning_rate"):
        training.train(cfg)
    assert not runs.is_finished(runs.run_dir(cfg))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.max_steps=0"], "trainer.max_steps=0 is refused: input should be greater than 0"),
        (["trainer.micro_batch_size=3"], "batch_size=4 is not a multiple of trainer.micro_batch_size=3"),
        (["trainer.warmup_ratio=1.5"], "warmup_ratio=1.5"),
        (
            ["trainer.compute_dtype=float16"],
            "trainer.compute_dtype=float16 is refused: input should be 'bfloat16' or 'float32'",
        ),
        (
            ["trainer.adapter_dtype=int8"],
            "trainer.adapter_dtype=int8 is refused: input should be 'float32' or 'bfloat16'",
        ),
        (["trainer.scheduler=stairs"], "trainer.scheduler=stairs is refused: input should be 'linear', 'cosine'"),
        (["trainer.scheduler=warmup_stable_decay"], "trainer.scheduler=warmup_stable_decay is refused"),
        (["trainer.scheduler=reduce_lr_on_plateau"], "trainer.scheduler=reduce_lr_on_plateau is refused"),
        (["trainer.validation_size=1000"], "validation_size=1000"),
        (["trainer.batch_size=many"], "trainer.batch_size=many is refused: input should be a valid integer"),
        (["trainer.max_steps=1.5"], "trainer.max_steps=1.5 is refused"),
        (["trainer.learning_rate=-1"], "trainer.learning_rate=-1 is refused"),
        (["trainer.group_by_length=yes"], "trainer.group_by_length=yes is refused"),
        (["trainer.quantization.type=int4"], "trainer.quantization.type=int4 is refused"),
        (["+trainer.lr=1"], "Unknown setting trainer.lr"),
        (["dataset.source.messages=nowhere.jsonl"], "nowhere.jsonl"),
        (["method.r=0"], "r"),
    ],
)
def test_bad_settings_are_named_before_anything_is_written(tiny, tmp_path, overrides, message):
    with pytest.raises(Exception, match=message) as caught:
        training.train(tiny(*overrides))
    from scripts.command import EXPECTED

    assert isinstance(caught.value, EXPECTED)
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_is_named_and_leaves_no_half_checkpoint(tiny, monkeypatch):
    def save(state, path):
        Path(path).write_bytes(b"half")
        raise RuntimeError(
            "[enforce fail at inline_container.cc] . PytorchStreamWriter failed: No space left on device"
        )

    monkeypatch.setattr(torch, "save", save)
    cfg = tiny()
    with pytest.raises(OSError, match=r"The disk is full at .*Free some space"):
        training.train(cfg)
    path = runs.run_dir(cfg)
    assert not runs.is_finished(path)
    assert list((path / "checkpoints").iterdir()) == []


def test_every_epoch_shows_every_example_once_with_similar_lengths_together():
    lengths = torch.randint(1, 100, (64,), generator=torch.Generator().manual_seed(1)).tolist()
    order = list(trainer.TrainingOrder(lengths, batch_size=4, steps=40, seed=0, grouped=True))
    assert len(order) == 160
    assert sorted(order[:64]) == sorted(order[64:128]) == list(range(64))
    assert order[:64] != order[64:128]
    assert order == list(trainer.TrainingOrder(lengths, 4, 40, seed=0, grouped=True))

    def padding(order):
        batches = [order[i : i + 4] for i in range(0, 64, 4)]
        return sum(max(lengths[i] for i in batch) * 4 - sum(lengths[i] for i in batch) for batch in batches)

    shuffled = list(trainer.TrainingOrder(lengths, 4, 40, seed=0, grouped=False))
    assert sorted(shuffled[:64]) == list(range(64))
    assert padding(order) < 0.5 * padding(shuffled)


def test_gradient_checkpointing_trains_the_same(tiny, undisturbed):
    path = training.train(tiny("trainer.gradient_checkpointing=true"))
    assert repeatable(path)[-1]["loss"] == pytest.approx(repeatable(undisturbed)[-1]["loss"], rel=1e-3)


def test_adapter_dtype_is_a_setting(tiny):
    model = training.adapted_model(tiny("trainer.adapter_dtype=bfloat16"))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.bfloat16}


def test_the_paper_profile_is_the_papers_finetuning():
    from scripts.config import compose

    settings = TrainerSettings.of(compose(["profile=paper"]).trainer)
    expected = {
        "max_steps": 10_000,
        "batch_size": 16,
        "micro_batch_size": 16,
        "max_length": 512,
        "learning_rate": 2e-4,
        "scheduler": "linear",
        "warmup_ratio": 0.03,
        "weight_decay": 0.0,
        "max_grad_norm": 0.3,
        "group_by_length": True,
        "gradient_checkpointing": True,
        "validation_size": 1024,
        "eval_steps": 1000,
        "compute_dtype": "bfloat16",
        "adapter_dtype": "float32",
        "quantization": {"type": "nf4", "double_quantization": True},
    }
    assert {name: value for name, value in settings.model_dump().items() if name in expected} == expected


def command(cell, runs_dir, *overrides):
    return [sys.executable, "-m", "scripts.train", *overrides, *cell, f"runs_dir={runs_dir}"]


def wait_for(found, process):
    while not found() and process.poll() is None:
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("after", ["checkpoint-3", "checkpoint-6/optimizer.pt", "checkpoint-9/trainer_state.json"])
def test_kill_9_and_the_same_command_again_end_with_the_same_bytes(tiny_cell, tiny, undisturbed, tmp_path, after):
    path = runs.run_dir(tiny(f"runs_dir={tmp_path / 'killed'}"))
    process = subprocess.Popen(command(tiny_cell, tmp_path / "killed"), cwd=ROOT)
    wait_for(lambda: (path / "checkpoints" / after).exists(), process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not runs.is_finished(path)
    subprocess.run(command(tiny_cell, tmp_path / "killed"), cwd=ROOT, check=True)
    assert adapter_hash(path) == adapter_hash(undisturbed)
    assert repeatable(path) == repeatable(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]])
def test_a_sweep_trains_the_product_and_leaves_no_folder_of_hydra(tiny_cell, tmp_path, launcher):
    cell = [override for override in tiny_cell if override != "method.r=4"]
    sweep = ["-m", "seed=0,1", "method.r=2,4", *launcher]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(command(cell, "runs", *sweep), cwd=tmp_path, env=environment, check=True)
    finished = sorted(p.parent.name.rpartition("-")[0] for p in tmp_path.glob("runs/smol/tiny/*/run.json"))
    assert finished == [f"lora-r{r}-cot-seed{seed}" for r in (2, 4) for seed in (0, 1)]
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


@pytest.mark.slow
def test_without_a_key_wandb_writes_offline_into_the_run(tiny, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    path = training.train(tiny())
    assert len(list(path.glob("wandb/offline-run-*/*.wandb"))) == 1


@pytest.mark.parametrize("scheduler", get_args(Scheduler))
def test_every_scheduler_that_is_taken_needs_no_arguments(scheduler):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(scheduler, optimizer, num_warmup_steps=2, num_training_steps=10)
    optimizer.step()
    schedule.step()  # which takes no loss


def test_settings_know_every_key_of_the_trainer_config(tiny):
    cfg = tiny()
    assert set(OmegaConf.to_container(cfg.trainer)) == set(TrainerSettings.model_fields)
    assert math.isclose(TrainerSettings.of(cfg.trainer).warmup_ratio, 0.03)


def test_torch_s_settings_are_as_before_after_a_training_and_after_a_failure(tiny):
    def settings():
        enabled = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        return *enabled, torch.utils.deterministic.fill_uninitialized_memory

    before = settings()
    with pytest.raises(FloatingPointError), training.deterministic():
        assert settings() == (True, True, False)
        raise FloatingPointError
    assert settings() == before


def test_the_trainer_of_transformers_still_has_what_we_replace(tmp_path):
    """Private names of transformers: docs/upgrading.md, scripts."""
    assert inspect.signature(Trainer._get_train_sampler).parameters.keys() == {"self", "train_dataset"}
    loading = inspect.signature(Trainer._load_from_checkpoint).parameters
    assert loading.keys() == {"self", "resume_from_checkpoint", "model"}
    assert "autocast_adapter_dtype" in inspect.signature(PeftModel.load_adapter).parameters
    assert "resume_from_checkpoint" in inspect.signature(Trainer._inner_training_loop).parameters
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    arguments.__dict__["_n_gpu"] = 4  # as on a machine with four
    assert arguments.n_gpu == 4
    assert trainer.on_one_gpu(arguments).train_batch_size == arguments.per_device_train_batch_size
