"""Columns that a profile leaves out of the average, and why: settings that are checked, and said under the table."""

import pytest

from scripts.config import compose
from scripts.table import grid, notes


def cfg(*overrides):
    return compose(["profile=smol", "table=table3", *overrides])


def test_every_column_is_in_the_average_unless_the_profile_says_otherwise():
    assert grid.averaged(cfg()) == list(cfg().table.columns)
    own = cfg("+not_in_average={bbh:it is at its floor}")
    assert grid.averaged(own) == [column for column in own.table.columns if column != "bbh"]
    assert notes.left_out(own, {"bbh": "My BBH"}) == ["My BBH is not in Avg.: it is at its floor"]
    assert notes.left_out(cfg(), {}) == []


def test_a_column_of_another_table_says_nothing():
    own = cfg("+not_in_average={tydiqa_f1:it is not here}")
    grid.check_table(own)
    assert notes.left_out(own, {}) == []


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("{bbg: a reason}", "not_in_average: Unknown column 'bbg'. Did you mean 'bbh'"),
        ("{mmlu: x, bbh: y, gsm8k: z}", "not_in_average leaves no column of table 'table3' for its average; keep one"),
    ],
)
def test_what_cannot_be_averaged_is_refused(value, sentence):
    with pytest.raises(ValueError, match=sentence):
        grid.check_table(cfg(f"+not_in_average={value}"))


def test_micro_says_what_it_leaves_out_and_that_it_does_not_judge():
    micro = compose(["profile=micro", "table=table2"])
    assert micro.no_verdicts
    [note] = notes.left_out(micro, {})
    assert "is not in Avg.: " in note
    assert len(grid.averaged(micro)) == len(micro.table.columns) - 1
