"""What there is to read and to write: lengths of examples and prompts."""

import logging
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import DictConfig

from scripts.config import compose

log = logging.getLogger(__name__)

STAND_IN_TOKENIZER = "smollm2_135m"  # where the model's own cannot be had; installed by `make setup`


@dataclass(frozen=True)
class Workload:
    """What a benchmark asks of a model: items, tokens per prompt (mean and longest), tokens and samples per answer."""

    items: int
    prompt: float
    longest: int
    new: int
    samples: int


def mean_length(cfg: DictConfig, dataset: DictConfig, tokenizer: Any) -> float:
    """Mean tokens of the prepared examples of a training set; without its data, the cut-off: an upper bound."""
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
    """A benchmark's real prompts where the data is there, else its published size and typical lengths."""
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
    return Workload(items, known["prompt_tokens"], known["longest_prompt_tokens"], new, samples)


def _prompts(cfg: DictConfig, name: str, tokenizer: Any) -> tuple[int, float, int]:
    from eval import benchmarks
    from eval.session import chosen_items
    from scripts.cell.evaluation import load_benchmark

    benchmark = load_benchmark(cfg, name)
    prompting = benchmarks.prompting(benchmark.config, cfg.evaluation.variant, chat=True)
    items = chosen_items(benchmark, tokenizer, prompting, cfg.limit)
    lengths = [len(ids) for ids in tokenizer([item.prompt for item in items])["input_ids"]]
    return len(items), fmean(lengths), max(lengths)


def load_tokenizer(cfg: DictConfig) -> Any:
    """The model's tokenizer, or a stand-in where a hub model's is not on this machine; None without data.

    A plan downloads nothing.
    """
    if cfg.data is None:
        return None
    from scripts.cell import base_model

    if cfg.model.source.kind == "hub":
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(
                cfg.model.source.repo, revision=cfg.model.source.revision, local_files_only=True
            )
        except OSError:
            log.warning(
                "The tokenizer of %s is not on this machine; lengths are %s's.", cfg.model.name, STAND_IN_TOKENIZER
            )
            stand_in = compose([f"model={STAND_IN_TOKENIZER}"]).model
            return base_model.load_tokenizer(stand_in, cfg.cache_dir)
    return base_model.load_tokenizer(cfg.model, cfg.cache_dir)
