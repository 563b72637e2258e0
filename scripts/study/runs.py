"""Runs of a study: what determines one, and the file that holds its result."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from data_prep import storage
from scripts.cell import runs
from scripts.command import EXPECTED, sentence
from scripts.config import compose
from scripts.study.settings import StudySettings

VERSION = 1  # of the task and of its training; raise it when a change of code gives other results
NEEDED = ["model", "method", "seed", "local_model", "runs_dir", "cache_dir"]  # of the config, for a run


@dataclass(frozen=True)
class Run:
    """One training: a row at a learning rate, on the facts and from the initialization of a seed."""

    label: str
    seed: int
    rate: float
    steps: int


Result = dict[str, Any]
Results = Mapping[Run, Result]  # of the finished runs


class Store:
    """The runs of a study on disk, one JSON file each.

    overrides: those that all runs share
    """

    def __init__(self, overrides: Sequence[str]) -> None:
        self.overrides = overrides
        self.study = StudySettings.of(compose(overrides).capacity)
        self._rows: dict[str, DictConfig] = {}

    @property
    def model(self) -> str:
        """The name of the base model."""
        return str(self._row(self.study.rows[0].label).model.name)

    def check(self) -> None:
        """Raise ValueError for a row that does not fit the base model, and for facts that it has too few tokens for."""
        from scripts.cell.parameters import trainable_parameters  # torch: only once the yaml is known to be right
        from scripts.cell.shapes import meta_model
        from scripts.study.facts import draw

        for row in self.study.rows:
            try:
                trainable_parameters(self._row(row.label))
            except EXPECTED as error:
                raise ValueError(f"The row '{row.label}' of capacity.rows is refused: {sentence(error)}") from error
        model = self._row(self.study.rows[0].label).model
        draw(self.study.facts, 0, meta_model(model).config.vocab_size)

    def config(self, run: Run) -> DictConfig:
        """The config that `run` is trained with."""
        cfg = self._row(run.label).copy()
        cfg.seed = run.seed
        return cfg

    def path(self, run: Run) -> Path:
        """`runs/capacity/<model>/<method>-seed<seed>-<key>.json`; the key is a hash of all that determines the result.

        Studies share what they have in common.
        """
        cfg = self.config(run)
        name = f"{cfg.method.name}-seed{run.seed}-{runs.digest(self._identity(cfg, run))}.json"
        return Path(cfg.runs_dir) / "capacity" / cfg.model.name / name

    def load(self, run: Run) -> Result | None:
        """The result of `run`, or None if it is not finished."""
        path = self.path(run)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def save(self, run: Run, result: Result) -> None:
        storage.write_json(self.path(run), result)

    def _row(self, label: str) -> DictConfig:
        """The config of a row: its method on the layers of the study, without dropout.

        Raises ValueError for a choice of layers that the study's would replace.
        """
        if label not in self._rows:  # Hydra takes a fifth of a second
            row = self.study.row(label)
            cfg = compose([*self.overrides, f"method={row.method}", "method.dropout=0.0", *row.overrides])
            if cfg.method.config.target_modules == "all-linear":  # Tied LoRA has layers of its own
                for override in row.overrides:
                    if "target_modules" in override and self.study.targets != "all-linear":
                        raise ValueError(
                            f"capacity.targets={self.study.targets} would replace {override}; leave one of the two out."
                        )
                cfg.method.config.target_modules = self.study.targets
            self._rows[label] = OmegaConf.masked_copy(cfg, NEEDED)
        return self._rows[label]

    @functools.cached_property
    def _model_key(self) -> str:
        return runs.model_key(self._row(self.study.rows[0].label).model)

    def _identity(self, cfg: DictConfig, run: Run) -> dict[str, Any]:
        method: Any = OmegaConf.to_container(cfg.method, resolve=True)
        return {
            "version": VERSION,
            "model": self._model_key,
            "method": {key: value for key, value in method.items() if key != "label"},
            "facts": self.study.facts.model_dump(),
            "optimizer": self.study.optimizer.model_dump() | {"steps": run.steps},
            "seed": run.seed,
            "rate": run.rate,
        }
