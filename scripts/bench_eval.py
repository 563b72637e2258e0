"""Evaluation against lm-evaluation-harness, and adapters in one engine against merged checkpoints, as Markdown tables.

python -m scripts.bench_eval benchmark=[...] [data=...] [limit=64]

The harness runs the same checkpoint in the same vLLM with the same settings, prompts and decoding. Both are loaded and
answer each benchmark in turns; no prefix is cached from one turn to the next, and the first turn is not measured. The
process that is loaded first is some per cent slower than the other, so all is done twice, with each of them first once.
A rate counts from building the prompts to the scores; reading the data and loading the model come before.
"""

import tempfile
from pathlib import Path

from omegaconf import DictConfig

from scripts.command import entry_point


@entry_point
def main(cfg: DictConfig) -> None:
    from eval.engines import resolve_dtype  # torch: only once the config is known to be right
    from scripts.cell import base_model
    from scripts.measure import harness
    from scripts.measure.evaluation import ITEMS, against_harness, against_merged, machine

    cfg.limit = cfg.limit or ITEMS
    checkpoint = base_model.checkpoint(cfg.model, cfg.cache_dir)
    harness.environment(cfg.cache_dir)
    with tempfile.TemporaryDirectory(dir=cfg.cache_dir) as folder:
        print(f"{machine()}; {cfg.model.name}, {resolve_dtype(cfg.engine.dtype)}, {cfg.limit} items a benchmark\n")
        print(against_harness(cfg, checkpoint, Path(folder).resolve()), end="\n\n", flush=True)
        print(against_merged(cfg, checkpoint, Path(folder).resolve()))


if __name__ == "__main__":
    main()
