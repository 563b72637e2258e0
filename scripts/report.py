"""One self-contained HTML page of a profile's results: tables, score against parameters, ablation, loss curves.

    python -m scripts.report profile=smol      (or `make report PROFILE=smol`)

It reads results/<profile>/, or results/published/<profile>/ where you have made no table, and, for the loss curves, the
runs that are on this machine. What it writes, report/<profile>.html, needs no network, no scripts and no other file.
With the overrides of another experiment (`RATES=own`) it is the page of that one, report/<profile>+<overrides>.html.
"""

from pathlib import Path

from omegaconf import DictConfig

from data_prep import storage
from scripts.command import entry_point
from scripts.config import shared_overrides
from scripts.table.experiment import variant
from scripts.table.page import page
from scripts.table.publish import results_to_read


@entry_point
def main(cfg: DictConfig) -> None:
    parts = [part for part in (cfg.profile, variant(shared_overrides(cfg))) if part]
    results = results_to_read(Path(cfg.results_dir), "/".join(parts))
    text = page(cfg.profile, results, Path(cfg.runs_dir) / cfg.profile)
    path = Path("report") / f"{'+'.join(parts)}.html"
    path.parent.mkdir(exist_ok=True)
    storage.write_text(path, text)
    print(path)


if __name__ == "__main__":
    main()
