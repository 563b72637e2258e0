"""The tables of README.md are those of the published results."""

import re
from pathlib import Path

import pytest

from scripts.config import ROOT
from scripts.table.publish import PUBLISHED
from scripts.table.readme import MARKED, README, filled

CSV = """table,source,label,rank,method,r,params,won,seed,column,value,std
t,measured,LoRA,2,lora_r2,2,4997,True,mean,avg,42.0400,1.2000
t,measured,Mine,9,mine,9,11,True,mean,avg,1.0000,
t,measured,Mine,9,other,9,11,False,mean,avg,0.5000,
t,paper,LoRA,2,,,5.00M,,,avg,34.9800,
"""


def test_the_readme_is_current() -> None:
    text = README.read_text(encoding="utf-8")
    assert MARKED.search(text)
    assert filled(text, PUBLISHED) == text, "run make readme"


def test_rows_stand_beside_the_paper_s_and_alone(tmp_path: Path) -> None:
    (tmp_path / "micro").mkdir()
    (tmp_path / "micro" / "t.csv").write_text(CSV, encoding="utf-8")
    text = filled("before\n<!-- table: micro/t -->\nold\n<!-- end -->\nafter", tmp_path)
    assert "| LoRA | 2 | 4,997 | 42.0 ± 1.2 | 5.00M | 35.0 |\n| Mine | 9 | 11 | 1.0 | - | - |\n<!-- end -->" in text
    assert text.startswith("before\n<!-- table: micro/t -->\n| Method")
    assert text.endswith("after")
    assert filled(text, tmp_path) == text


def test_a_table_that_is_not_published_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"README\.md shows .*micro/none\.csv"):
        filled("<!-- table: micro/none -->\n<!-- end -->", tmp_path)


def test_pictures_of_the_readme_are_published() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README.read_text(encoding="utf-8"))
    assert pictures
    assert all((ROOT / picture).is_file() and picture.startswith("results/published/") for picture in pictures)
