"""Serving MoS adapters as they are, against the same adapters exported, and against vLLM alone: `make bench-serve`.

python -m scripts.bench_serve [FIGURE ...] [--out DIR] [--rounds N] [--adapters N] ...

Some 10 minutes on two cores, which must be idle otherwise. Each figure is written as soon as it is measured, and is not
measured again by the next run with the same sizes and code on the same machine, so that a run can be stopped. The table
of all figures goes to docs/performance.md, unless another folder is named for the results.
"""

import argparse
import os
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

from data_prep.storage import write_text
from eval.engines.environment import ALWAYS, cpu_environment
from scripts.config import ROOT
from scripts.measure.serving_bench import Bench, Sizes
from scripts.measure.serving_engine import try_uncaching
from scripts.measure.serving_figures import FIGURES
from scripts.measure.serving_table import described, filled, once, table

PUBLISHED = ROOT / "results" / "published" / "serving"
PAGE = ROOT / "docs" / "performance.md"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_serve", description="Measure serving.")
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"of {', '.join(FIGURES)}; all without it")
    parser.add_argument("--out", type=Path, default=PUBLISHED, help="a folder for the results")
    parser.add_argument("--cache-dir", type=Path, default=ROOT / "cache", help="for base models and adapters")
    for field in fields(Sizes):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)
    given = parser.parse_args(arguments)
    if unknown := set(given.figures) - set(FIGURES):
        parser.error(f"'{min(unknown)}' is no figure; choose of {', '.join(FIGURES)}.")
    try:
        try_uncaching(given.cache_dir)
    except OSError as error:
        parser.error(str(error))
    sizes = replace(Sizes(), **{field.name: getattr(given, field.name) for field in fields(Sizes)})
    os.environ |= ALWAYS | cpu_environment(1, 1) | {"TOKENIZERS_PARALLELISM": "false"}  # the engines inherit it
    rows = []
    with Bench(sizes, given.cache_dir) as bench:
        for name in given.figures or FIGURES:
            found = once(given.out / f"{name}.json", sizes, partial(FIGURES[name], bench))
            print(table(found), flush=True)
            rows += found
    block = f"{described(sizes)}\n\n{table(rows)}"
    if given.out == PUBLISHED and not given.figures:
        write_text(PAGE, filled(PAGE.read_text(encoding="utf-8"), block))


if __name__ == "__main__":
    main()
