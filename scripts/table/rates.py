"""Learning rates of the methods' own: a file that a search writes and that `rates=own` reads."""

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from data_prep import storage
from scripts.table.experiment import results_folder

SETTING = "trainer.learning_rate"
RATES = "rates.yaml"
HEAD = "# Each method's own learning rate, by `make lr-search`; a table takes them with RATES=own (docs/tables.md).\n"


def rates_file(cfg: DictConfig, overrides: Sequence[str]) -> Path:
    """Where the rates of an experiment are: beside its tables at the common rate."""
    return results_folder(cfg, [override for override in overrides if not override.startswith("rates=")]) / RATES


def keep(path: Path, found: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the best of the rates that a search tried, by method. Those of other methods stay.

    found: of each method `seeds`, `datasets`, and `tried`: validation loss by learning rate, in nats, infinite where
        training diverged. It is added to what was tried before on the same seeds and sets, and replaces what was tried
        on others. A method without a finite loss stays as it is.
    """
    known = _read(path) if path.is_file() else {}
    entries = {method: _entry(known.get(method, {}), own) for method, own in found.items()}
    usable = {method: own for method, own in entries.items() if isfinite(own["tried"][own["learning_rate"]])}
    if usable:
        text = OmegaConf.to_yaml(OmegaConf.create(dict(sorted({**known, **usable}.items()))))
        storage.write_text(path, HEAD + text)


def own_rates(cfg: DictConfig, overrides: Sequence[str], methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What the file says of each of the methods; empty unless the table asks for `rates=own`.

    Raises FileNotFoundError if there is no file, ValueError for a method that it lacks, for a rate that was chosen on a
    seed that the table reports, and for a common rate beside `rates=own`.
    """
    if cfg.rates is None:
        return {}
    for override in overrides:
        if override.lstrip("+").startswith(f"{SETTING}="):
            raise ValueError(f"{override} would have no effect with rates=own; leave one of the two out.")
    path = rates_file(cfg, overrides)
    if not path.is_file():
        raise FileNotFoundError(f"rates=own reads {path}, which is not there; {_search(methods)} writes it.")
    known = _read(path)
    if missing := [method for method in methods if method not in known]:
        raise ValueError(f"{path} has no rate of {', '.join(missing)}; {_search(missing)} adds it.")
    for method in methods:
        if shared := set(known[method]["seeds"]) & set(cfg.seeds):
            raise ValueError(
                f"{path}: the rate of {method} was chosen on seed {min(shared)}, which the table reports; search with "
                "other seeds (search.seeds=[...]), or report others."
            )
    return {method: known[method] for method in methods}


def at_the_edge(rate: Mapping[str, Any]) -> bool:
    """Whether the best rate is the lowest or the highest of those tried, so that a better one may lie beyond."""
    return float(rate["learning_rate"]) in (min(map(float, rate["tried"])), max(map(float, rate["tried"])))


def _entry(known: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """What the file will say of a method: the best of all that was tried on these seeds and sets, the lowest first."""
    alike = all(set(known.get(key, [])) == set(own[key]) for key in ("seeds", "datasets"))
    tried = dict(sorted({**(known["tried"] if alike else {}), **own["tried"]}.items()))
    return {"learning_rate": min(tried, key=lambda rate: tried[rate]), **own, "tried": tried}


def _search(methods: Sequence[str]) -> str:
    return f"make lr-search METHODS={','.join(methods)}"


def _read(path: Path) -> dict[str, Any]:
    found: Any = OmegaConf.to_container(OmegaConf.load(path))
    return dict(found)
