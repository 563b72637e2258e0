"""What a table reads and writes: how many examples and prompts there are, and how long they are."""

import logging
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import DictConfig

from scripts.config import compose

log = logging.getLogger(__name__)

STAND_IN = "smollm2_135m"  # a model of configs/model, whose tokenizer `make setup` installs


@dataclass(frozen=True)
class Workload:
    """What a benchmark asks of a model."""

    items: int
    prompt: float  # mean tokens
    longest: int  # prompt, tokens
    new: int  # tokens of an answer, at most; 0 where letters are scored
    samples: int  # answers per item


def mean_length(cfg: DictConfig, dataset: DictConfig, tokenizer: Any) -> float:
    """Mean tokens of the prepared examples of a training set; without its data `trainer.max_length`, an upper bound."""
    from data_prep.prepare import prepare

    limit = float(cfg.trainer.max_length)
    if tokenizer is None:
        return limit
    options = {
        "max_length": cfg.trainer.max_length,
        "validation_size": cfg.trainer.validation_size,
        "cache_dir": Path(cfg.cache_dir),
    }
    try:
        report = prepare(dataset, tokenizer, data=Path(cfg.data), **options).report
    except FileNotFoundError as error:
        log.warning("%s: every example counts with %.0f tokens. %s", dataset.name, limit, error)
        return limit
    return float(report["tokens"] / (report["train"] + report["validation"]))


def workload(cfg: DictConfig, name: str, tokenizer: Any) -> Workload:
    """The benchmark's real prompts where the data is there; else its `published` numbers.

    Lengths that are not published count as the longest that the engine takes, an upper bound.
    """
    config = cfg.benchmark[name]
    new = 0 if config.get("letters") else config.max_new_tokens
    samples = config.get("samples", 1)
    if tokenizer is not None:
        try:
            return Workload(*_prompts(cfg, name, tokenizer), new, samples)
        except FileNotFoundError as error:
            log.warning("%s: its published size counts. %s", name, error)
    known = config.published
    items = min(known["items"], cfg.limit or known["items"])
    longest = known["longest_prompt_tokens"] or cfg.engine.max_model_len - new
    if not known["prompt_tokens"]:
        log.warning("%s: nobody has published how long its prompts are: each counts with %d tokens.", name, longest)
    return Workload(items, known["prompt_tokens"] or longest, longest, new, samples)


def _prompts(cfg: DictConfig, name: str, tokenizer: Any) -> tuple[int, float, int]:
    from eval import benchmarks
    from eval.session import chosen_items
    from scripts.cell.evaluation import load_benchmark

    benchmark = load_benchmark(cfg, name)
    prompting = benchmarks.prompting(benchmark.config, cfg.evaluation.variant, chat=True)
    items = chosen_items(benchmark, tokenizer, prompting, cfg.limit)
    lengths = [len(ids) for ids in tokenizer([item.prompt for item in items])["input_ids"]]
    return len(items), fmean(lengths), max(lengths)


def plan_tokenizer(cfg: DictConfig) -> Any:
    """The model's tokenizer, without its weights; None without data, whose lengths it would count.

    A plan downloads nothing. Where a hub model's tokenizer is not on this machine, SmolLM2's stands in for it.
    Raises FileNotFoundError if that is not installed, ValueError for an unknown kind of source.
    """
    if cfg.data is None:
        return None
    if cfg.model.source.kind == "generated":
        from scripts.cell.pretraining import micro_tokenizer

        return micro_tokenizer(cfg.model)
    try:
        return _stored_tokenizer(cfg.model.source)
    except OSError:
        if cfg.model.source.kind != "hub":
            raise
        log.warning("The tokenizer of %s is not on this machine; lengths are %s's.", cfg.model.name, STAND_IN)
        return _stored_tokenizer(compose([f"model={STAND_IN}"]).model.source)


def _stored_tokenizer(source: DictConfig) -> Any:
    from transformers import AutoTokenizer

    if source.kind == "hub":
        return AutoTokenizer.from_pretrained(source.repo, revision=source.revision, local_files_only=True)
    if source.kind == "local":
        return AutoTokenizer.from_pretrained(source.path)
    from scripts.cell.base_model import gguf_file

    path = gguf_file(source)
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
