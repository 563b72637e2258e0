"""What `scripts.train` is made of: the model with its adapter, the trainer, and runs that survive a kill."""

import json
import math
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset
from filelock import FileLock
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from pyarrow.compute import list_value_length
from torch.nn.functional import cross_entropy
from torch.utils.data import Sampler
from transformers import (
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import SchedulerType

from data_prep import storage
from data_prep.chat import IGNORED
from data_prep.prepare import Prepared, prepare
from data_prep.storage import full_disk_named
from scripts import runs, tracking
from scripts.base_model import compute_dtype, load_quantized, load_tokenizer


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
    settings = Settings.of(cfg.trainer)
    if cfg.method.config is None:
        with _claimed(path, cfg):
            _finish(path, cfg, {})
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
    model = adapted_model(cfg)
    with _claimed(path, cfg):
        if not _is_done(path):  # another process may have finished it meanwhile
            _finish(path, cfg, _fit(model, tokenizer, data, settings, cfg, path))
    return path


@dataclass(frozen=True)
class Settings:
    """The section `trainer` of the config, typed and checked; `configs/trainer/default.yaml` says what each is."""

    max_steps: int
    batch_size: int
    micro_batch_size: int
    max_length: int
    learning_rate: float
    scheduler: str
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    group_by_length: bool
    gradient_checkpointing: bool
    validation_size: int
    eval_steps: int
    save_steps: int
    logging_steps: int
    compute_dtype: str
    adapter_dtype: str
    quantization: dict[str, Any]

    @classmethod
    def of(cls, trainer: DictConfig) -> "Settings":
        """Raises ValueError (or OmegaConf's errors, of a wrong type or name) naming the setting and its value."""
        settings = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), trainer))
        assert isinstance(settings, cls)
        settings._check(trainer)
        return settings

    def _check(self, trainer: DictConfig) -> None:
        for name in ("max_steps", "batch_size", "micro_batch_size", "max_length", "eval_steps", "save_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name}={getattr(self, name)} must be at least 1.")
        if self.batch_size % (self.micro_batch_size * processes()):
            raise ValueError(
                f"trainer.batch_size={self.batch_size} is not a multiple of "
                f"trainer.micro_batch_size={self.micro_batch_size}"
                + (f" on each of {processes()} processes; lower the second." if processes() > 1 else ".")
            )
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"trainer.warmup_ratio={self.warmup_ratio} must be at least 0 and below 1.")
        if self.adapter_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"trainer.adapter_dtype='{self.adapter_dtype}' is not supported; use float32 or bfloat16.")
        SchedulerType(self.scheduler)  # its error lists the known ones
        compute_dtype(trainer)


def adapted_model(cfg: DictConfig) -> PeftModel:
    """The 4-bit base with a fresh adapter, initialised from `cfg.seed`; only the adapter is trainable.

    Raises ValueError if the method's settings do not fit the model.
    """
    config = instantiate(cfg.method.config, _convert_="all")
    base = prepare_model_for_kbit_training(
        load_quantized(cfg.model, cfg.trainer, cfg.cache_dir),
        use_gradient_checkpointing=False,  # the trainer turns it on, in the form that needs no gradient of the input
    )
    set_seed(cfg.seed)
    model = get_peft_model(base, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(getattr(torch, cfg.trainer.adapter_dtype))
    return model


class TrainingOrder(Sampler[int]):
    """The examples of the whole training in one sequence, epoch after epoch, so that a resumed run only skips ahead.

    lengths: tokens per example; grouped: batches hold examples of similar length
    """

    def __init__(self, lengths: list[int], batch_size: int, steps: int, seed: int, grouped: bool) -> None:
        self.lengths, self.batch_size, self.seed, self.grouped = lengths, batch_size, seed, grouped
        self.total = batch_size * steps

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        indices: list[int] = []
        while len(indices) < self.total:
            indices += self._epoch(generator)
        return iter(indices[: self.total])

    def _epoch(self, generator: torch.Generator) -> list[int]:
        if self.grouped:
            return get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        return torch.randperm(len(self.lengths), generator=generator).tolist()


class CellTrainer(Trainer):
    """The transformers trainer with the order of `TrainingOrder`, and a stop at the first loss that is not finite."""

    def __init__(self, *, settings: Settings, data: Prepared, **kwargs: Any) -> None:
        super().__init__(train_dataset=data.train, eval_dataset=data.validation, **kwargs)
        self.settings, self.examples = settings, data.train

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> TrainingOrder:
        s = self.settings
        return TrainingOrder(lengths(self.examples), s.batch_size, s.max_steps, self.args.seed, s.group_by_length)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        """Mean over the labelled tokens of the batch. Logits are made only where some row of the batch has a label."""
        targets = inputs["labels"][:, 1:]  # (b, t) -> (b, t-1): position i predicts token i+1
        kept = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)  # (k,) positions
        outputs = model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], logits_to_keep=kept
        )  # logits (b, k, v)
        total = cross_entropy(outputs.logits.flatten(0, 1).float(), targets[:, kept].flatten(), reduction="sum")
        if num_items_in_batch is None or not model.training:
            loss = total / (targets != IGNORED).sum()
        else:
            loss = total / num_items_in_batch * processes()  # all processes' labels; their gradients are averaged
        return (loss, outputs) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {self.state.global_step + 1}; "
                f"lower trainer.learning_rate (now {self.settings.learning_rate}) and start again."
            )
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with torch.random.fork_rng():  # so that how often we look does not change what is trained
            return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds epochs of the data, seconds since the start (kills left out) and peak memory to what is logged."""
        self.state.epoch = self.state.global_step * self.settings.batch_size / len(self.examples)
        logs["seconds"] = round(self._earlier + time.monotonic() - self._started, 2)
        logs["memory_gib"] = round(peak_memory() / 2**30, 3)
        super().log(logs, start_time)

    def start(self, checkpoint: Path | None) -> None:
        """Train from the beginning or from `checkpoint` to the end."""
        history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"] if checkpoint else []
        self.args.eval_on_start = checkpoint is None
        self._earlier, self._started = max((line["seconds"] for line in history), default=0.0), time.monotonic()
        self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


class MetricsFile(TrainerCallback):
    """Keeps `metrics.jsonl` equal to the trainer's history, which is part of the checkpoints: a line per log event."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if state.is_world_process_zero:
            storage.write_text(self.path, "".join(map(_line, state.log_history)))

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        control.should_log |= control.should_save  # the sum behind the next mean is not part of a checkpoint

    def on_log(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if state.is_world_process_zero:
            with self.path.open("a") as file:
                file.write(_line(state.log_history[-1]))


def processes() -> int:
    """How many processes train this cell together: more than one under `accelerate launch`."""
    return PartialState().num_processes


def lengths(examples: Dataset) -> list[int]:
    """Number of tokens of every example, without reading the tokens into Python."""
    return list_value_length(examples.with_format("arrow")[:]["input_ids"]).to_pylist()


def peak_memory() -> int:
    """Bytes: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; incomplete ones, left by a kill or a full disk, are removed.

    The trainer writes `trainer_state.json` last, so a checkpoint is complete if that file is.
    """
    complete = []
    for path in folder.glob("checkpoint-*"):
        try:
            complete.append((json.loads((path / "trainer_state.json").read_text())["global_step"], path))
        except (OSError, ValueError):
            shutil.rmtree(path)
    return max(complete)[1] if complete else None


def _fit(
    model: PeftModel, tokenizer: Any, data: Prepared, settings: Settings, cfg: DictConfig, path: Path
) -> dict[str, Any]:
    """Train, save the adapter, and return what `run.json` says of it."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # scatter-adds of the CPU, among others
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    checkpoints = path / "checkpoints"
    main = PartialState().is_main_process
    with full_disk_named(path), tracking.tracked(cfg, path) if main else nullcontext("none") as reporter:
        trainer = CellTrainer(
            settings=settings,
            data=data,
            model=model,
            args=_arguments(settings, cfg.seed, checkpoints, reporter),
            data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED, pad_to_multiple_of=8),
            callbacks=[MetricsFile(path / "metrics.jsonl"), tracking.Throughput()],
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
            tracking.summarize(results)
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


def _arguments(settings: Settings, seed: int, checkpoints: Path, reporter: str) -> TrainingArguments:
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        seed=seed,
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.micro_batch_size,
        per_device_eval_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.batch_size // (settings.micro_batch_size * processes()),
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.scheduler,
        warmup_steps=math.ceil(settings.warmup_ratio * settings.max_steps),
        optim="paged_adamw_32bit" if cuda else "adamw_torch",
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.compute_dtype == "bfloat16",
        tf32=True if cuda else None,
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy="steps",
        eval_steps=settings.eval_steps,
        prediction_loss_only=True,
        save_steps=settings.save_steps,
        save_total_limit=2,  # the one before the last is needed if a kill hits while the last is written
        logging_steps=settings.logging_steps,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        use_cpu=not cuda,
        ddp_find_unused_parameters=False,
        report_to=reporter,
    )
    arguments._n_gpu = 1  # one process must not spread its batch over all GPUs of the machine (DataParallel)
    return arguments


@contextmanager
def _claimed(path: Path, cfg: DictConfig) -> Iterator[None]:
    """Hold the run directory against other trainings (a second one waits), with its `config.yaml` in place.

    Of the processes of one training the main one holds it for all.
    """
    team = PartialState()
    path.mkdir(parents=True, exist_ok=True)
    with FileLock(path / ".lock") if team.is_main_process else nullcontext():
        if team.is_main_process and not (path / "config.yaml").exists():  # its time is that of the first start
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
            **runs.provenance(),
        },
    )
    shutil.rmtree(path / "checkpoints", ignore_errors=True)
    print(f"{path} is finished.")


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"
