"""What a table says about itself: code that changed between its cells, and settings that are not the paper's."""

from types import SimpleNamespace

import pytest

from scripts.config import compose
from scripts.table import collect, notes


def result(code, evaluated=None):
    """A cell whose training and evaluation recorded these keys of code; None: a run from before code was recorded."""
    metrics = {"scores": {"mmlu": 1.0}} | ({} if evaluated is None else {"code": evaluated})
    info = {"seed": 0} | ({} if code is None else {"code": code})
    found = collect.Result(SimpleNamespace(benchmarks=["mmlu"]), SimpleNamespace(info=info), ())
    found.__dict__["metrics"] = {"mmlu": metrics}  # of a cached property: nothing is read from disk
    return found


SAME = {"mos": "1a", "data_prep": "2b"}, {"eval": "3c", "data_prep": "2b"}


def test_cells_of_the_same_code_need_no_note():
    assert notes.mixed_code([result(*SAME), result(*SAME)]) == []


@pytest.mark.parametrize(
    ("other", "note"),
    [
        (({**SAME[0], "mos": "9f"}, SAME[1]), "under mos/: 1 by 1a, 1 by 9f."),
        ((SAME[0], {**SAME[1], "eval": "9f"}), "under eval/: 1 by 3c, 1 by 9f."),
        ((SAME[0], {**SAME[1], "data_prep": "9f"}), "under data_prep/: 3 by 2b, 1 by 9f."),
        ((None, SAME[1]), "under data_prep/: 1 not recorded, 3 by 2b."),
        (({"data_prep": "2b"}, SAME[1]), "under mos/: 1 not recorded, 1 by 1a."),
    ],
)
def test_other_code_or_none_that_was_recorded_is_said(other, note):
    found = notes.mixed_code([result(*SAME), result(*other)])
    assert f"The results were not all made by the same code {note}" in found


def test_the_notes_name_what_is_not_the_paper_s():
    cfg = compose(["profile=micro", "table=table3", "limit=7", "evaluation.variant=tulu"])
    found = notes.differences(cfg)
    assert "limit 7 (all)" in found
    assert "evaluation.variant tulu (authors)" in found
    assert "benchmark.gsm8k.shots 0 (8)" in found
    assert not [line for line in found if "tydiqa" in line]  # no column of Table 3
    assert not [line for line in found if "steps" in line and "max_steps" not in line]


def test_benchmarks_that_a_narrower_table_leaves_out_are_no_difference():
    found = notes.differences(compose(["profile=smol", "table=table1", "datasets=[code_alpaca]"]))
    assert {line.split(".")[1] for line in found if line.startswith("benchmark.")} == {"humaneval"}


def test_the_paper_s_profile_has_nothing_to_say():
    assert notes.differences(compose(["profile=paper", "table=table2"])) == []


def rate(learning_rate, seeds, datasets):
    tried = {learning_rate / 3: 2.0, learning_rate: 1.0, learning_rate * 3: 2.0}
    return {"learning_rate": learning_rate, "seeds": seeds, "datasets": datasets, "tried": tried}


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (
            {"lora_r2": rate(0.1, [8, 7], ["cot", "flan_v2"]), "mos_r8": rate(0.2, [7, 8], ["flan_v2", "cot"])},
            "Learning rate: each method's own (`rates=own`), with the lowest validation loss (cot, flan_v2) of those "
            "tried on seeds that the table does not report (7, 8): `lora_r2` 0.1, `mos_r8` 0.2.",
        ),
        (
            {"lora_r2": rate(0.1, [7], ["cot"]), "mos_r4": rate(0.2, [8], ["cot"]), "mos_r8": rate(0.3, [7], ["cot"])},
            "Learning rate: each method's own (`rates=own`), with the lowest validation loss of those tried on seeds "
            "that the table does not report: on cot (seeds: 7) `lora_r2` 0.1, `mos_r8` 0.3; on cot (seeds: 8) `mos_r4` "
            "0.2.",
        ),
        (
            {"lora_r2": rate(0.1, [7], ["cot", "flan_v2"]), "mos_r8": rate(0.2, [7], ["cot"])},
            "that the table does not report: on cot, flan_v2 (seeds: 7) `lora_r2` 0.1; on cot (seeds: 7) `mos_r8` 0.2.",
        ),
    ],
)
def test_each_method_s_own_search_is_said(monkeypatch, found, says):
    monkeypatch.setattr(notes, "own_rates", lambda cfg, overrides, methods: {m: found[m] for m in methods})
    trained = [SimpleNamespace(cell=SimpleNamespace(method=method, dataset="cot")) for method in found]
    [note] = notes.learning_rates(SimpleNamespace(rates="own"), [], trained)
    assert note.endswith(says)
