"""Searches: every combination, impossible ones with their reason, ranked by validation loss."""

import json
from pathlib import Path

from scripts.config import compose
from scripts.table import search


def found(shards: str, private: str, *extra: str) -> list[search.Combination]:
    chosen = [f"search.grid.method.shards_per_vector={shards}", f"search.grid.method.private_rank={private}"]
    common = ["profile=smol", "search=mos", "search.datasets=[cot,flan_v2]", "search.grid.method.r=[8]"]
    overrides = [*common, *chosen, *extra]
    return search.combinations(compose(overrides), overrides)


def test_learning_rates_of_appendix_a() -> None:
    cfg = compose(["search=lr"])
    assert list(cfg.search.grid.trainer.learning_rate) == [2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3]
    assert compose([f"method={cfg.search.method}"]).method.r == 8


def test_impossible_combinations_are_skipped_with_their_reason() -> None:
    combinations = found("[4,5]", "[0,4]")
    reasons = {
        (c.settings["method.shards_per_vector"], c.settings["method.private_rank"]): c.skipped for c in combinations
    }
    assert reasons[4, 0] is None
    assert "private_rank=4 must be in [0, equivalent_rank=2]" in (reasons[4, 4] or "")
    assert "shards_per_vector=5 does not divide" in (reasons[5, 0] or "")


def test_ranking_is_by_mean_validation_loss_over_sets_and_seeds(tmp_path: Path) -> None:
    losses = {("cot", 0): 3.0, ("cot", 1): 5.0, ("flan_v2", 0): 1.0, ("flan_v2", 1): 1.0}
    combinations = found("[4]", "[0,1]", "seeds=[0,1]", f"runs_dir={tmp_path}")
    for shift, combination in zip([0.5, 0.0], combinations, strict=True):
        for key, path in combination.runs.items():
            path.mkdir(parents=True)
            (path / "run.json").write_text(json.dumps({"metrics": {"eval_loss": losses[key] + shift}}))
            (path / "config.yaml").write_text("{}")
    ranked = search.ranking(combinations)
    assert list(ranked["method.private_rank"]) == [1, 0]
    assert list(ranked["mean"]) == [2.5, 3.0]
    assert list(ranked["cot"]) == [4.0, 4.5]
