"""The tables of README.md and docs/evidence.md are those of the published results."""

import re
from pathlib import Path

import pytest

from scripts.config import ROOT
from scripts.table.readme import COPIED, MARKED, PAGES, README, RESULTS, filled

HEAD = "table,source,label,rank,method,r,params,won,seed,column,value,std,difference,p_holm\n"
CSV = f"""{HEAD}t,measured,LoRA,2,lora_r2,2,4997,True,mean,avg,42.0400,1.2000,,
t,measured,Mine,9,mine,9,11,True,mean,avg,1.0000,,-41.04,0.04
t,measured,Mine,9,other,9,11,False,mean,avg,0.5000,,,
t,paper,LoRA,2,,,5.00M,,,avg,34.9800,,,
"""
LOSSES = """t,measured,LoRA,2,lora_r2,2,4997,True,mean,validation_loss,0.91234,0.00126,,
t,measured,Mine,9,mine,9,11,True,mean,validation_loss,0.9,,-0.01234,0.04
t,measured,Mine,9,mine,9,11,True,0,validation_loss,0.8,,,
t,measured,Worse,9,worse,9,11,True,mean,validation_loss,0.93,,0.01,0.06
t,measured,Worse,9,worse,9,11,True,mean,avg,,,-1.0,
"""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_is_current(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert COPIED.search(text)
    assert MARKED.search(text) or page != README
    assert filled(text, RESULTS) == text, "run make readme"


def test_rows_stand_beside_the_paper_s_and_alone(tmp_path: Path) -> None:
    (tmp_path / "published" / "micro").mkdir(parents=True)
    (tmp_path / "published" / "micro" / "t.csv").write_text(CSV, encoding="utf-8")
    text = filled("before\n<!-- table: micro/t -->\nold\n<!-- end -->\nafter", tmp_path)
    assert "| LoRA | 2 | 4,997 | 42.0 ± 1.2 | 5.00M | 35.0 |\n| Mine | 9 | 11 | 1.0 | - | - |\n<!-- end -->" in text
    assert text.startswith("before\n<!-- table: micro/t -->\n| Method")
    assert text.endswith("after")
    assert filled(text, tmp_path) == text


def test_validation_losses_stand_in_front_of_the_averages(tmp_path: Path) -> None:
    (tmp_path / "published" / "smol" / "rates=own").mkdir(parents=True)
    (tmp_path / "published" / "smol" / "rates=own" / "t.csv").write_text(CSV + LOSSES, encoding="utf-8")
    text = filled("<!-- table: smol/rates=own/t -->\n<!-- end -->", tmp_path)
    assert "| # Param., measured | Val. loss ↓, measured | Avg., measured |" in text
    assert "| LoRA | 2 | 4,997 | 0.9123 ± 0.0013 | 42.0 ± 1.2 | 5.00M | 35.0 |" in text
    assert "| Mine | 9 | 11 | 0.9000 ▲ | 1.0 | - | - |" in text
    assert "| Worse | 9 | 11 | 0.9300 | - | - | - |" in text


def test_a_table_that_is_not_published_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"A page shows .*micro/none\.csv"):
        filled("<!-- table: micro/none -->\n<!-- end -->", tmp_path)


PAGE = """# Study

## Rows
A sentence.

| a |
| --- |
| 1 |

| b |

## Empty
Nothing.
"""


def test_the_first_table_below_a_heading_is_copied(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(PAGE, encoding="utf-8")
    text = "<!-- page: page.md, Rows -->\n| old |\n<!-- end -->"
    assert filled(text, tmp_path) == "<!-- page: page.md, Rows -->\n| a |\n| --- |\n| 1 |\n<!-- end -->"


@pytest.mark.parametrize("heading", ["Row", "Empty"])
def test_a_page_without_the_table_is_named(heading: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(PAGE, encoding="utf-8")
    with pytest.raises(ValueError, match=f"the table below '{heading}' in .*page.md, which has none"):
        filled(f"<!-- page: page.md, {heading} -->\n<!-- end -->", tmp_path)


def test_a_page_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"A page shows a table of .*none\.md"):
        filled("<!-- page: none.md, Rows -->\n<!-- end -->", tmp_path)


def test_pictures_of_the_readme_are_published() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README.read_text(encoding="utf-8"))
    assert pictures
    assert all(
        (ROOT / picture).is_file() and picture.startswith(("results/published/", "results/capacity/"))
        for picture in pictures
    )
