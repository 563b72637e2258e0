"""Trains one run: an adapter learns the facts of a seed, and is asked for all of them."""

import functools
import math
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch
from omegaconf import DictConfig
from peft import PeftModel, get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy, linear
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM

from scripts.cell.adapter import adapter_config
from scripts.cell.base_model import checkpoint
from scripts.cell.provenance import provenance
from scripts.study.facts import Facts, bits_per_parameter, draw, stream
from scripts.study.runs import Result, Run
from scripts.study.settings import FactsSettings, OptimizerSettings, StudySettings

CHUNK = 1024  # facts asked at once


def train(cfg: DictConfig, study: StudySettings, run: Run) -> Result:
    """Train `run` and return its result, which JSON can hold: what it is, what it reached, what it ran on.

    A run whose loss stops being a number ends there; it has `diverged`, and recalls and holds nothing.
    cfg: of the run's row and seed
    """
    started, clock = datetime.now(UTC), time.perf_counter()
    model = adapted(cfg)
    facts = draw(study.facts, run.seed, model.config.vocab_size).to(model.device)
    head = value_head(model, study.facts)
    trained = fit(model, head, facts, study.optimizer, run)
    entropy, recall = ask(model, head, facts) if trained else (math.nan, 0.0)
    parameters, diverged = model.num_parameters(only_trainable=True), not math.isfinite(entropy)
    bits = 0.0 if diverged else bits_per_parameter(entropy, study.facts.count, study.facts.values, parameters)
    return {
        **asdict(run),
        "parameters": parameters,
        "diverged": diverged,
        "recall": 0.0 if diverged else recall,
        "bits_per_parameter": bits,
        "cross_entropy": None if diverged else entropy,
        "seconds": round(time.perf_counter() - clock, 1),
        "started": started.isoformat(timespec="seconds"),
        "provenance": _provenance(),
    }


def adapted(cfg: DictConfig) -> PeftModel:
    """The base model in float32, not in 4 bits, with the adapter of `cfg.method`, initialized from `cfg.seed`."""
    path = checkpoint(cfg.model, cfg.cache_dir)
    network: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        model = get_peft_model(network, adapter_config(cfg.method, network))
    assert isinstance(model, PeftModel)
    return model


def value_head(model: PeftModel, settings: FactsSettings) -> Tensor:
    """The rows (v, hidden) of the output head that belong to the value tokens: no other token is an answer."""
    base: Any = model.get_base_model()
    weight: Tensor = base.get_output_embeddings().weight
    return weight[settings.first_token :][: settings.values]


def fit(model: PeftModel, head: Tensor, facts: Facts, settings: OptimizerSettings, run: Run) -> bool:
    """Train the adapter for `run.steps` steps; returns False as soon as the loss is not finite."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, run.rate, weight_decay=0.0)
    schedule = LambdaLR(optimizer, functools.partial(rate_at, steps=run.steps, warmup=settings.warmup_ratio))
    batches = _batches(len(facts.values), settings.batch_size, run.seed)
    model.train()
    for _ in range(run.steps):
        batch = next(batches).to(head.device)
        loss = cross_entropy(logits(model, head, facts.keys[batch]), facts.values[batch])
        if not math.isfinite(loss.item()):
            return False
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return True


def rate_at(step: int, steps: int, warmup: float) -> float:
    """The share of the learning rate at a step: up in a line over the warm-up, then down in a line to 0."""
    rising = warmup * steps
    return min((step + 1) / max(rising, 1), (steps - step) / max(steps - rising, 1), 1.0)


def logits(model: PeftModel, head: Tensor, keys: Tensor) -> Tensor:
    """Logits (b, v) of the value tokens after the two key tokens (b, 2)."""
    base: Any = model.get_base_model()
    states = base.get_decoder()(input_ids=keys, use_cache=False).last_hidden_state  # (b, 2, hidden)
    return linear(states[:, -1], head)  # (b, hidden) (hidden, v) -> (b, v)


@torch.no_grad()
def ask(model: PeftModel, head: Tensor, facts: Facts) -> tuple[float, float]:
    """Mean cross-entropy in nats, and recall in percent, over all facts."""
    model.eval()
    entropy = right = 0.0
    for keys, values in zip(facts.keys.split(CHUNK), facts.values.split(CHUNK), strict=True):
        found = logits(model, head, keys).double()
        entropy += cross_entropy(found, values, reduction="sum").item()
        right += (found.argmax(1) == values).sum().item()
    return entropy / len(facts.values), 100 * right / len(facts.values)


def _batches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of indices of facts: a new order whenever all have been seen."""
    generator = stream(seed, "order")
    order = torch.empty(0, dtype=torch.long)
    while True:
        while len(order) < size:
            order = torch.cat([order, torch.randperm(count, generator=generator)])
        batch, order = order[:size], order[size:]
        yield batch


@functools.cache  # of the code that this process has loaded
def _provenance() -> dict[str, Any]:
    return provenance()
