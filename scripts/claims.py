"""Which of the paper's claims hold in a profile: differences between rows of finished tables, with intervals.

    make table1 table2 SEEDS=0,1,2,3,4
    python -m scripts.claims profile=micro seeds=[0,1,2,3,4]

Writes `results/<profile>/claims.md`; an experiment that overrides change has a folder of its own, as its tables have.
"""

from omegaconf import DictConfig, OmegaConf

from data_prep import storage
from scripts.command import entry_point
from scripts.config import CONFIGS, choices, shared_overrides
from scripts.table.claims import outcomes_of, render_claims
from scripts.table.experiment import results_folder


@entry_point
def main(cfg: DictConfig) -> None:
    shared = shared_overrides(cfg)
    common = [override for override in shared if override.partition("=")[0] not in ("table", "model")]
    tables = [name for name in choices("table") if "claims" in OmegaConf.load(CONFIGS / "table" / f"{name}.yaml")]
    outcomes = [outcome for table in tables for outcome in outcomes_of([*common, f"table={table}"])]
    text = render_claims(outcomes, cfg.profile, cfg.seeds, cfg.no_verdicts)
    path = results_folder(cfg, common) / "claims.md"
    storage.write_text(path, text)
    print(f"{text}\n{path}")


if __name__ == "__main__":
    main()
