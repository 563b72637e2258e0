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
