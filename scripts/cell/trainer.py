"""The transformers trainer of a cell: its order of examples, its loss, its log."""

import json
import math
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from pyarrow.compute import list_value_length
from torch.nn.functional import cross_entropy
from torch.utils.data import Sampler
from transformers import (
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_pt_utils import get_length_grouped_indices

from data_prep import storage
from data_prep.chat import IGNORED
from data_prep.prepare import Prepared
from scripts.cell.settings import TrainerSettings, processes

# Of the kernels of Liger, those inside the blocks. The loss is our own (`compute_loss`).
LIGER = {"rope": True, "rms_norm": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": False}


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
    """The transformers trainer with the order of `TrainingOrder`, and a stop at the first loss that is not finite.

    uncheckpointed: micro-batches of at most so many tokens, padding included, keep their activations
    untrained: file for the validation loss of the untrained adapter. It is the base model's, whatever the method and
        the seed, so the first cell that needs it measures it for all
    held_out: file for the loss of the finished adapter on each validation example (`docs/architecture.md`)
    """

    def __init__(
        self,
        *,
        settings: TrainerSettings,
        data: Prepared,
        untrained: Path,
        held_out: Path,
        uncheckpointed: int = 0,
        **kwargs: Any,
    ) -> None:
        self.validation_order = np.argsort(lengths(data.validation), kind="stable")  # batches need little padding
        super().__init__(train_dataset=data.train, eval_dataset=data.validation.select(self.validation_order), **kwargs)
        self.settings, self.examples, self.uncheckpointed = settings, data.train, uncheckpointed
        self.untrained, self.held_out = untrained, held_out

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> TrainingOrder:  # a hook of transformers
        s = self.settings
        return TrainingOrder(lengths(self.examples), s.batch_size, s.max_steps, self.args.seed, s.group_by_length)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):  # type: ignore[no-untyped-def]
        """Mean over the labelled tokens of the batch."""
        outputs, targets = _forward(model, inputs)
        total = cross_entropy(outputs.logits.flatten(0, 1).float(), targets.flatten(), reduction="sum")
        if num_items_in_batch is None or not model.training:
            loss = total / (targets != IGNORED).sum()
        else:
            loss = total / num_items_in_batch * processes()  # all processes' labels; their gradients are averaged
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        for module in self._checkpointed:  # the recomputed forward draws the same dropout: the result is the same
            module.gradient_checkpointing = inputs["input_ids"].numel() > self.uncheckpointed
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {self.state.global_step + 1}; "
                f"lower trainer.learning_rate (now {self.settings.learning_rate}) and start again."
            )
        return loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As transformers estimates them; it would count the parameters anew at each step, which small ones notice."""
        return 6 * int(inputs["input_ids"].numel()) * self._parameters

    @cached_property
    def _parameters(self) -> int:
        model: Any = self.model
        return int(model.num_parameters(exclude_embeddings=True))

    @cached_property
    def _checkpointed(self) -> list[Any]:
        """The modules on which transformers has turned checkpointing on; looked up at the first step."""
        model: Any = self.model
        return [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        first = self.state.global_step == 0
        if first and (known := self._untrained_loss()) is not None:
            self.log({"eval_loss": known})
            return {"eval_loss": known}
        with torch.random.fork_rng():  # so that how often we look does not change what is trained
            metrics = super().evaluate(*args, **kwargs)
        if first and self.is_world_process_zero():
            storage.write_text(self.untrained, json.dumps(metrics["eval_loss"]))
        return metrics

    def _untrained_loss(self) -> float | None:
        """What an earlier cell measured, if one has; the same answer for all processes of this cell."""
        read = storage.read_json(self.untrained) if self.untrained.is_file() else None
        return broadcast_object_list([read])[0]

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):  # type: ignore[no-untyped-def]
        """Of each example of the batch the sum of its losses and the number of its labels, and the batch's mean."""
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs, targets = _forward(model, self._prepare_inputs(inputs))
            logits = outputs.logits.flatten(0, 1).float()  # (b k, v): over the last dimension, which is contiguous
            losses = cross_entropy(logits, targets.flatten(), reduction="none").view_as(targets).sum(dim=1)  # (b,)
        tokens = (targets != IGNORED).sum(dim=1)  # (b,)
        return losses.sum() / tokens.sum(), losses, tokens

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The validation loss per labelled token, over all examples; transformers' own is a mean of batch means."""
        output: Any = super().evaluation_loop(*args, **kwargs)
        losses, tokens = map(np.asarray, (output.predictions, output.label_ids))  # (n,) each, of all processes
        output.metrics["eval_loss"] = float(losses.sum() / tokens.sum())
        if self.state.global_step == self.settings.max_steps and self.is_world_process_zero():
            as_given = np.argsort(self.validation_order)
            pairs = zip(losses[as_given], tokens[as_given], strict=True)
            lines = [{"loss": float(loss), "tokens": int(n)} for loss, n in pairs]
            storage.write_text(self.held_out, "".join(map(_line, lines)))
        return output

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds epochs of the data, seconds since the start (kills left out) and peak memory to what is logged."""
        self.state.epoch = self.state.global_step * self.settings.batch_size / len(self.examples)
        logs["seconds"] = round(self._earlier + time.monotonic() - self._started, 2)
        logs["memory_gib"] = round(peak_memory() / 2**30, 3)
        super().log(logs, start_time)

    def start(self, checkpoint: Path | None) -> None:
        """Train from the beginning or from `checkpoint` to the end."""
        history = storage.read_json(checkpoint / "trainer_state.json")["log_history"] if checkpoint else []
        self.args.eval_on_start = checkpoint is None
        forget_peak_memory()
        self._earlier, self._started = max((line["seconds"] for line in history), default=0.0), time.monotonic()
        self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """As transformers does, but into the parameters that are there: PEFT would make a bfloat16 adapter float32."""
        own: Any = self.model
        own.load_adapter(resume_from_checkpoint, own.active_adapter, is_trainable=True, autocast_adapter_dtype=False)

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        with walked_once(self.model):  # which holds its parameters by now: a checkpoint has been loaded
            return super()._inner_training_loop(*args, **kwargs)


@contextmanager
def walked_once(model: Any) -> Iterator[None]:
    """Within it, a model's trainable parameters are looked up once, and `train` does nothing in training mode.

    transformers walks through all modules three times a step, which is a fifteenth of a step of a small model.
    """
    trained, switch = [parameter for parameter in model.parameters() if parameter.requires_grad], model.train
    model.parameters = lambda recurse=True: iter(trained)
    model.train = lambda mode=True: model if model.training == mode else switch(mode)
    try:
        yield
    finally:
        del model.parameters, model.train


def _forward(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[Any, torch.Tensor]:
    """The model's output, logits (b, k, v), and what it had to predict, (b, k), at the k positions with some label."""
    targets = inputs["labels"][:, 1:]  # (b, t) -> (b, t-1): position i predicts token i+1
    kept = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)  # (k,) positions
    outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], logits_to_keep=kept)
    return outputs, targets[:, kept]


class MetricsFile(TrainerCallback):
    """Keeps `metrics.jsonl` equal to the trainer's history, which is part of the checkpoints: a line per log event."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if state.is_world_process_zero:
            storage.write_text(self.path, "".join(map(_line, state.log_history)))

    def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        # Log before saving: the running loss is not in the checkpoint, so a resumed run would report a wrong mean.
        control.should_log |= control.should_save

    def on_log(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
        if state.is_world_process_zero:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(state.log_history[-1]))


def lengths(examples: Dataset) -> list[int]:
    """Number of tokens of every example, without reading the tokens into Python."""
    return list_value_length(examples.with_format("arrow")[:]["input_ids"]).to_pylist()


def peak_memory() -> int:
    """Bytes at most since `forget_peak_memory`: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError):
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS, in bytes there; it cannot be made to forget


def forget_peak_memory() -> None:
    """Begin anew: a worker trains several cells, and each one's memory is its own."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # proc(5): the peak is set to the present


def training_arguments(settings: TrainerSettings, seed: int, checkpoints: Path) -> TrainingArguments:
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
        optim="paged_adamw_32bit" if cuda else "adamw_torch_fused",
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.compute_dtype == "bfloat16",
        tf32=True if cuda else None,
        gradient_checkpointing=settings.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        use_liger_kernel=settings.liger,
        liger_kernel_config=LIGER,
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
        report_to="none",
    )
    return on_one_gpu(arguments)


def on_one_gpu(arguments: TrainingArguments) -> TrainingArguments:
    """One process takes one GPU; the trainer would spread its batch over all GPUs of the machine (DataParallel)."""
    arguments._n_gpu = 1
    return arguments


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"
