"""The verdicts on the paper's claims: from scores alone, with the sign that each claim names."""

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from scripts.config import compose
from scripts.table import claims, grid
from scripts.table.claims import Claim, compare
from scripts.table.summary import Entry

CFG = OmegaConf.create({"table": {"columns": ["mmlu"]}})


def entry(method: str, score: float, seeds: int = 2) -> Entry:
    """Reaches `score` percent on 200 items with each seed, give or take a little noise per item."""
    values = score + np.random.default_rng(len(method)).normal(0, 5, 200)
    items = pd.DataFrame({"mmlu": values, "task": "a"}, index=[f"i{n}" for n in range(200)])
    scores = pd.DataFrame({"mmlu": [values.mean()] * seeds}, index=range(seeds))
    return Entry(method, 4, 100, scores, {"mmlu": items})


@pytest.mark.parametrize(
    ("relation", "score", "verdict"),
    [
        ("higher", 60.0, "holds"),
        ("higher", 40.0, "does not hold"),
        ("higher", 50.0, "no difference shown"),
        ("lower", 40.0, "holds"),
        ("lower", 60.0, "does not hold"),
        ("reaches", 60.0, "holds"),
        ("reaches", 40.0, "does not hold"),
        ("reaches", 50.0, "no difference shown"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero(relation, score, verdict):
    claim = Claim("text", "table2", ("MoS", "4/8"), relation, ("LoRA", "2"))
    outcome = compare(claim, entry("mos", score), entry("lora2", 50.0), CFG, set())
    assert outcome.low < np.mean(outcome.per_seed) < outcome.high
    assert outcome.verdict == verdict


def test_other_seeds_cannot_be_compared():
    with pytest.raises(ValueError, match="mos and lora have other items or seeds"):
        compare(claims.CLAIMS[0], entry("mos", 50.0, 3), entry("lora", 50.0), CFG, set())


def test_every_claim_names_rows_of_its_table():
    for claim in claims.CLAIMS:
        rows = grid.rows(compose([f"table={claim.table}", "profile=micro"]))
        assert {claim.row, claim.than} <= {(row.label, row.rank or "") for row in rows}


def test_the_page_says_what_was_compared():
    outcome = claims.Outcome(claims.CLAIMS[0], -3.0, -1.0, [-2.5, -1.5])
    text = claims.render_claims([outcome], "micro", [0, 1])
    assert "| Pure Sharing 64 against LoRA 2 | -2.00 | -3.00 to -1.00 | -2.5, -1.5 | holds |" in text
