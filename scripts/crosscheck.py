"""Compare prompts, scores and training data with open-instruct, whose evaluation the paper's is a copy of.

python -m scripts.crosscheck profile=micro open_instruct=CHECKOUT runs=[runs/micro/...]
(or `make crosscheck OPEN_INSTRUCT=CHECKOUT RUN=runs/micro/...`)

Writes results/crosscheck/<run>.md; for several runs <profile>.md. docs/crosscheck.md says what is compared.
"""

from pathlib import Path

from omegaconf import DictConfig

from data_prep.storage import write_text
from scripts.command import entry_point
from scripts.config import OF_A_RUN, given, refuse_lost
from scripts.original.checkout import checked
from scripts.original.compare import compare, evaluations
from scripts.original.report import report
from scripts.original.sets import compare_sets


@entry_point
def main(cfg: DictConfig) -> None:
    refuse_lost(given(), OF_A_RUN)
    checkout = checked(cfg.open_instruct, cfg.metric_scripts)
    if not cfg.runs:
        raise ValueError("runs=[] names no run; give evaluated run directories, e.g. RUN=runs/micro/...")
    found = evaluations(cfg.runs)
    label = Path(cfg.runs[0]).name if len(cfg.runs) == 1 else cfg.profile
    work = Path(cfg.cache_dir, "crosscheck", label).resolve()
    metrics = Path(cfg.metric_scripts).resolve() if cfg.metric_scripts else None
    rows = compare(cfg, found, checkout, metrics, work)
    sets, missing = compare_sets(cfg, given(), checkout, work)
    text = report(label, cfg.data, rows, sets, missing)
    path = Path(cfg.results_dir) / "crosscheck" / f"{label}.md"
    write_text(path, text)
    print(f"{text}\n{path}")


if __name__ == "__main__":
    main()
