"""Training one cell: the model with its adapter, and runs that survive a kill."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from omegaconf import DictConfig, OmegaConf
from peft import PeftModel, get_peft_model
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from transformers import (
    DataCollatorForSeq2Seq,
    set_seed,
)

from data_prep import storage
from data_prep.chat import IGNORED
from data_prep.prepare import Prepared, prepare
from data_prep.sources import fetched
from data_prep.storage import full_disk_named
from scripts.cell import runs, tracking
from scripts.cell.adapter import adapter_config
from scripts.cell.attention import use_products
from scripts.cell.base_model import load_quantized, load_tokenizer
from scripts.cell.dropout import use_bits
from scripts.cell.prepared import prepared, uncheckpointed_tokens
from scripts.cell.products import quick_products
from scripts.cell.provenance import provenance
from scripts.cell.settings import TrainerSettings, processes
from scripts.cell.trainer import CellTrainer, MetricsFile, training_arguments
from scripts.measure.machine import require_gpu


def train(cfg: DictConfig) -> Path:
    """Train the cell that `cfg` describes, or carry on where a killed run stopped; returns its run directory.

    A finished run is left as it is. A vanilla row has nothing to train: its run is the config alone.
    Started by `accelerate launch`, all its processes train one cell; only the main one writes.
    Raises ValueError, FileNotFoundError and other one-sentence errors before anything is written to the run directory,
    FloatingPointError if the loss is not finite, OSError if the disk is full.
    """
    path = runs.run_dir(cfg)
    PartialState(cpu=not torch.cuda.is_available())  # joins the other processes
    if _is_done(path):
        return path
    settings = TrainerSettings.of(cfg.trainer)
    _check_machine(cfg, settings)
    if cfg.method.config is None:
        with _claimed(path, cfg):
            _finish(path, cfg, {})
        return path
    fetched(cfg.dataset.source, cfg.data, Path(cfg.cache_dir))
    path = runs.run_dir(cfg)  # its key holds the content of the data, which is here now
    if _is_done(path):
        return path
    tokenizer = load_tokenizer(cfg.model, cfg.cache_dir)
    data = prepare(
        cfg.dataset,
        tokenizer,
        data=cfg.data and Path(cfg.data),
        max_length=settings.max_length,
        validation_size=settings.validation_size,
        cache_dir=Path(cfg.cache_dir),
    )
    uncheckpointed = uncheckpointed_tokens(cfg)  # before the model takes memory
    model = adapted_model(cfg)
    with _claimed(path, cfg):
        if not _is_done(path):  # another process may have finished it meanwhile
            _finish(path, cfg, _fit(model, tokenizer, data, settings, cfg, path, uncheckpointed))
    return path


def adapted_model(cfg: DictConfig) -> PeftModel:
    """The 4-bit base with a fresh adapter, initialised from `cfg.seed`; only the adapter is trainable.

    Raises ValueError if the method's settings do not fit the model.
    """
    base = prepared(load_quantized(cfg.model, cfg.trainer, cfg.cache_dir), cfg.trainer)
    config = adapter_config(cfg.method, base)
    set_seed(cfg.seed)
    model = get_peft_model(base, config)
    if cfg.trainer.attention == "products":
        use_products(base)
    if cfg.trainer.fast_dropout:
        use_bits(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(getattr(torch, cfg.trainer.adapter_dtype))
    return model


@contextmanager
def deterministic() -> Iterator[None]:
    """The same bytes from the same seed, also from scatter-adds on a CPU; torch's settings are restored afterwards."""
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = settings.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        settings.fill_uninitialized_memory = False  # a safeguard that costs time
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = filled


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; incomplete ones, left by a kill or a full disk, are removed.

    The trainer writes `trainer_state.json` last, so a checkpoint is complete if that file is.
    """
    complete = []
    for path in folder.glob("checkpoint-*"):
        try:
            (path / SAFETENSORS_WEIGHTS_NAME).stat()
            complete.append((storage.read_json(path / "trainer_state.json")["global_step"], path))
        except (OSError, ValueError):
            shutil.rmtree(path)
    return max(complete)[1] if complete else None


def _check_machine(cfg: DictConfig, settings: TrainerSettings) -> None:
    """Raise ValueError for a run on a machine that lacks what its settings want."""
    if cfg.gpus_per_run:
        require_gpu()
    if settings.liger and (find_spec("liger_kernel") is None or not torch.cuda.is_available()):
        raise ValueError("trainer.liger=true needs a GPU and pip install liger-kernel; leave it at false without them.")


def _fit(
    model: PeftModel,
    tokenizer: Any,
    data: Prepared,
    settings: TrainerSettings,
    cfg: DictConfig,
    path: Path,
    uncheckpointed: int,
) -> dict[str, Any]:
    """Train, save the adapter, and return what `run.json` says of it."""
    checkpoints = path / "checkpoints"
    main = PartialState().is_main_process
    logged = tracking.tracked(cfg, path) if main else nullcontext(tracking.Tracker())
    with deterministic(), quick_products(settings), full_disk_named(path), logged as tracker:
        trainer = CellTrainer(
            settings=settings,
            data=data,
            uncheckpointed=uncheckpointed,
            untrained=runs.untrained_loss(cfg, data.key),
            held_out=path / runs.HELD_OUT_LOSSES,
            model=model,
            args=training_arguments(settings, cfg.seed, checkpoints),
            data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED, pad_to_multiple_of=8),
            callbacks=[MetricsFile(path / "metrics.jsonl"), tracking.Curves(tracker)],
        )
        with PartialState().main_process_first():  # it removes incomplete checkpoints before the others look
            last = last_checkpoint(checkpoints)
        try:
            trainer.start(last)
        finally:
            if main:
                last_checkpoint(checkpoints)  # leaves no half-written one behind
        results = _results(trainer.state.log_history, model, data)
        if main:
            with storage.new_folder(path / "adapter") as folder:
                model.save_pretrained(str(folder), save_embedding_layers=False)
            tracker.summarize(results)
    return results


def _results(history: list[dict[str, float]], model: PeftModel, data: Prepared) -> dict[str, Any]:
    losses = [line["loss"] for line in history if "loss" in line]
    eval_losses = [line["eval_loss"] for line in history if "eval_loss" in line]
    return {
        "trainable_parameters": model.num_parameters(only_trainable=True),
        "seconds": max(line["seconds"] for line in history),
        "metrics": {
            "first_loss": losses[0],
            "loss": losses[-1],
            "first_eval_loss": eval_losses[0],  # of the untrained adapter: the base model's
            "eval_loss": eval_losses[-1],
            "memory_gib": max(line["memory_gib"] for line in history),
        },
        "data": {"key": data.key, **{k: v for k, v in data.report.items() if k != "broken_rows"}},
    }


@contextmanager
def _claimed(path: Path, cfg: DictConfig) -> Iterator[None]:
    """Hold the run directory against other trainings (a second one waits), with its `config.yaml` in place.

    Of several processes that train one cell, the main one holds the lock for all.
    """
    team = PartialState()
    path.mkdir(parents=True, exist_ok=True)
    with runs.lock(path) if team.is_main_process else nullcontext():
        if team.is_main_process and not (path / "config.yaml").exists():  # its time says when the run first began
            storage.write_text(path / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        team.wait_for_everyone()
        yield


def _is_done(path: Path) -> bool:
    if not runs.is_finished(path):
        return False
    shutil.rmtree(path / "checkpoints", ignore_errors=True)  # a kill may have come between the two
    PartialState().print(f"{path} is finished already.")
    return True


def _finish(path: Path, cfg: DictConfig, results: dict[str, Any]) -> None:
    """Write `run.json`, which makes the run a finished one."""
    if not PartialState().is_main_process:
        return
    started = datetime.fromtimestamp((path / "config.yaml").stat().st_mtime, UTC)
    storage.write_json(
        path / "run.json",
        {
            "status": "finished",
            "key": path.name.rpartition("-")[2],
            "name": runs.name(cfg),
            "profile": cfg.profile,
            "model": cfg.model.name,
            "method": cfg.method.name,
            "dataset": None if cfg.method.config is None else cfg.dataset.name,
            "seed": cfg.seed,
            "processes": processes(),
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            **results,
            **provenance(),
        },
    )
    shutil.rmtree(path / "checkpoints", ignore_errors=True)
    print(f"{path} is finished.")
