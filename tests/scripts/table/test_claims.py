"""The verdicts on the paper's claims: from scores alone, with the sign that each claim names."""

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf

from scripts.config import choices, compose
from scripts.table import claims
from scripts.table.claims import Claim, compare
from scripts.table.summary import Entry

HURTS = Claim("Sharing alone hurts", ("Pure Sharing", "64"), "lower", ("LoRA", "2"))
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
    claim = Claim("text", ("MoS", "4/8"), relation, ("LoRA", "2"))
    outcome = compare(claim, entry("mos", score), entry("lora2", 50.0), CFG, set())
    assert outcome.low < np.mean(outcome.per_seed) < outcome.high
    assert outcome.verdict == verdict


def test_other_seeds_cannot_be_compared():
    with pytest.raises(ValueError, match="mos and lora have other items or seeds"):
        compare(HURTS, entry("mos", 50.0, 3), entry("lora", 50.0), CFG, set())


@pytest.mark.parametrize("table", choices("table"))
def test_every_claim_names_rows_of_its_table(table):
    found = claims.claims(compose([f"table={table}", "profile=micro"]))
    assert bool(found) == (table != "table3")  # the paper says of Table 3 what it says of Table 2


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("table.claims.0.row=[MoS, '5']", "claim 'Sharing alone hurts': the table has no row MoS 5"),
        (
            "table.claims.0.relation=above",
            r"table.claims\[0\].relation=above is refused: .* or 'reaches'",
        ),
        ("table.claims.0.row=MoS 4/8", r"table.claims\[0\].row=MoS 4/8 is refused: .* E.g. row: "),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused(override, sentence):
    cfg = compose(["table=table1"])
    key, _, value = override.partition("=")
    OmegaConf.update(cfg, key, OmegaConf.create(f"v: {value}").v)
    with pytest.raises(ValueError, match=sentence):
        claims.claims(cfg)


def test_a_row_that_was_left_out_cannot_be_judged():
    with pytest.raises(ValueError, match=r"the row Pure Sharing 64 is left out by methods=\['lora_r2'\]; run all"):
        claims.outcomes_of(["table=table1", "methods=[lora_r2]"])


def test_the_page_says_what_was_compared():
    outcome = claims.Outcome(HURTS, -3.0, -1.0, [-2.5, -1.5])
    text = claims.render_claims([outcome], "micro", [0, 1])
    assert "| Pure Sharing 64 against LoRA 2 | -2.00 | -3.00 to -1.00 | -2.5, -1.5 | holds |" in text
