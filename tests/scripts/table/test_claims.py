"""The verdicts on the paper's claims: from scores alone, with the sign that each claim names."""

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from scipy.stats import t

from scripts.config import choices, compose
from scripts.table import claims
from scripts.table.claims import Claim, compare
from scripts.table.statistics import estimate
from scripts.table.summary import AVERAGE, HELD_OUT, LOSS, Entry

MARGIN = {AVERAGE: 0.5, LOSS: 0.01}
NOISE = {"mos": 1, "lora2": 2}  # seeds of each method's own noise


def claim(relation):
    return Claim("text", ("MoS", "4/8"), relation, ("LoRA", "2"), MARGIN if relation == "reaches" else {})


def entry(method, score, loss=1.5, seeds=5, noise=0.2):
    """Reaches `score` percent and `loss` nats on 200 items with each seed.

    noise: standard deviation of the seeds in points, a hundredth of it in nats; items have ten times as much
    """
    rng = np.random.default_rng(NOISE[method])
    error = rng.normal(0, noise, (seeds, 1)) + rng.normal(0, 10 * noise, (seeds, 200))
    index = pd.MultiIndex.from_product([["a"], range(200)], names=["task", "id"])

    def items(column, values):
        return pd.concat({column: pd.DataFrame(values.T, index)}, axis=1)

    values = {"mmlu": score + error - error.mean(), LOSS: loss + (error - error.mean()) / 100}
    scores = pd.DataFrame({column: own.mean(axis=1) for column, own in values.items()}, index=range(seeds))
    found = {"mmlu": items("mmlu", values["mmlu"]), HELD_OUT: items(LOSS, values[LOSS])}
    return Entry(method, 4, 100, scores, found, ["mmlu"])


@pytest.mark.parametrize(
    ("relation", "score", "verdict"),
    [
        ("higher", 60.0, "holds"),
        ("higher", 40.0, "does not hold"),
        ("higher", 50.0, "cannot tell"),
        ("lower", 40.0, "holds"),
        ("lower", 60.0, "does not hold"),
        ("lower", 50.0, "cannot tell"),
        ("reaches", 60.0, "holds"),
        ("reaches", 40.0, "does not hold"),
        ("reaches", 50.4, "holds"),  # not lower, though not shown to be higher
        ("reaches", 49.5, "cannot tell"),  # at the margin itself
    ],
)
def test_a_verdict_needs_the_whole_interval(relation, score, verdict):
    average, loss = compare(claim(relation), entry("mos", score, 1.5 - (score - 50) / 50), entry("lora2", 50.0), set())
    low, high = average.found.interval
    assert low < np.mean(list(average.per_seed.values())) < high
    assert high - low < 1
    assert average.verdict.partition(":")[0] == verdict
    assert loss.verdict.partition(":")[0] == verdict  # a lower loss is what a higher score is


def test_one_seed_cannot_judge_the_method():
    outcomes = compare(claim("higher"), entry("mos", 60.0, 1.0, seeds=1), entry("lora2", 50.0, seeds=1), set())
    assert {outcome.verdict for outcome in outcomes} == {"cannot tell: one seed says nothing of others"}
    assert "one seed says nothing of others" in claims.render_claims(outcomes, "smol", [0], None)


@pytest.mark.parametrize("relation", ["higher", "lower", "reaches"])
def test_rows_that_differ_on_no_item_cannot_be_judged(relation):
    outcome = claims.Outcome(claim(relation), AVERAGE, estimate([np.zeros((3, 16))]), dict.fromkeys(range(3), 0.0))
    assert outcome.verdict == "cannot tell: the two rows differ on no item"
    assert "| +0.00 | no interval | +0.00, +0.00, +0.00 |" in claims.render_claims([outcome], "smol", [0, 1, 2], None)


@pytest.mark.parametrize("relation", ["higher", "lower", "reaches"])
def test_rows_that_differ_by_the_same_on_every_item_cannot_be_judged(relation):
    outcome = claims.Outcome(
        claim(relation), AVERAGE, estimate([np.full((3, 16), 33.3)]), dict.fromkeys(range(3), 33.3)
    )
    assert outcome.verdict == "cannot tell: the two rows differ by the same on every item"


def outcome_of(spread, items, gain, measure=AVERAGE, relation="higher"):
    """Three seeds `spread` points apart, items give or take `items`, a mean difference of `gain`."""
    rows = np.array([[-spread], [0.0], [spread]]) + gain + np.tile([-items, items], 100)
    return claims.Outcome(claim(relation), measure, estimate([rows]), dict(enumerate(rows.mean(axis=1))))


def test_it_says_how_many_seeds_it_would_take():
    outcome = outcome_of(spread=3.0, items=0.1, gain=2.0)
    assert outcome.verdict == "cannot tell: it would take some 12 seeds"
    assert t.isf(0.025, 11) * 3 / np.sqrt(12) < 2 < t.isf(0.025, 10) * 3 / np.sqrt(11)


def test_it_says_where_only_more_items_would_do():
    assert outcome_of(spread=0.0, items=30.0, gain=2.0).verdict.startswith("cannot tell: not even 1,000 seeds would")
    assert outcome_of(spread=3.0, items=0.1, gain=0.0).verdict.startswith("cannot tell: not even 1,000 seeds would")


def test_other_seeds_cannot_be_compared():
    with pytest.raises(ValueError, match="mos and lora2 have other items or seeds"):
        compare(claim("higher"), entry("mos", 50.0, seeds=3), entry("lora2", 50.0), set())


def test_without_a_recorded_loss_its_line_is_a_dash():
    old = entry("mos", 60.0)
    del old.items[HELD_OUT], old.scores[LOSS]
    outcomes = compare(claim("higher"), old, entry("lora2", 50.0), set())
    assert [outcome.verdict for outcome in outcomes] == ["holds", "-"]
    assert "| Val. loss ↓ | - | - | - | - |" in claims.render_claims(outcomes, "smol", [0, 1], None)


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
    outcomes = claims.outcomes_of(["table=table1", "methods=[vera_r256]"])
    assert [(outcome.measure, outcome.found, outcome.verdict) for outcome in outcomes] == 2 * [
        ("avg", None, "-"), ("validation_loss", None, "-")
    ]  # fmt: skip
    text = claims.render_claims(outcomes, "smol", [0, 1], None)
    assert "| Sharing alone hurts | Pure Sharing 64 against LoRA 2 | Avg. | - | - | - | - |" in text
    assert "A claim about a row that was not run shows -." in text


@pytest.mark.parametrize(
    ("margin", "sentence"),
    [
        (
            {},
            "'MoS at e=8 reaches LoRA 64': the relation `reaches` needs margin: {avg: 0.5, validation_loss: 0.01}",
        ),
        ({"avg": 0.5}, "needs margin"),
        ({"avg": -0.5, "validation_loss": 0.01}, "should be greater than 0"),
    ],
)
def test_reaching_needs_a_margin(margin, sentence):
    cfg = compose(["table=table2"])
    OmegaConf.update(cfg, "table.claims.2.margin", margin, merge=False)
    with pytest.raises(ValueError, match=sentence):
        claims.claims(cfg)


def test_another_relation_takes_none():
    cfg = compose(["table=table2"])
    OmegaConf.update(cfg, "table.claims.0.margin", MARGIN, force_add=True)
    with pytest.raises(ValueError, match="the relation `higher` takes no margin; only `reaches` does"):
        claims.claims(cfg)


def test_the_page_says_what_was_compared():
    text = claims.render_claims([outcome_of(0.1, 0.1, -2.0, relation="lower")], "smol", [0, 1, 2], None)
    assert "| MoS 4/8 against LoRA 2 | Avg. | -2.00 | -2.25 to -1.75 | -2.10, -2.00, -1.90 | holds |" in text


def test_differences_stand_in_the_order_of_the_seeds_that_are_named():
    text = claims.render_claims([outcome_of(0.1, 0.1, -2.0)], "smol", [2, 0, 7, 1], None)
    assert "Differences over seeds 2, 0, 7, 1," in text
    assert "| -1.90, -2.10, -, -2.00 |" in text


def test_each_table_is_judged_on_its_own_model(monkeypatch):
    """Table 3 is of 13B: its claims must not be judged on the cells of Table 2."""
    asked = []
    monkeypatch.setattr(claims.grid, "cells", lambda cfg, overrides: asked.append(cfg) or [])
    claims.outcomes_of(["table=table3", "profile=micro", "methods=[vera_r256]"])
    assert asked[0].model.name == asked[0].models["13b"]


def test_a_profile_that_cannot_judge_prints_differences_and_the_reason():
    text = claims.render_claims([outcome_of(0.1, 0.1, -2.0)], "micro", [0, 1, 2], "It is too short.")
    assert "No verdicts: It is too short." in text
    assert "-2.25 to -1.75" in text
    for verdict in ("holds", "does not hold", "cannot tell", "Verdict"):
        assert verdict not in text
