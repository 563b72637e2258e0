"""The report page: what it says, that it needs nothing else, and that a browser shows it."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from scripts.config import ROOT
from scripts.table import page as report
from scripts.table.figures import INK
from scripts.table.summary import LOSS

SMOL = ROOT / "tests" / "fixtures" / "smol_results"  # of a run of 30 steps: two rows, all training sets, one seed
CHROMIUM = shutil.which("chromium")


class Rows(HTMLParser):
    """The text of the table rows of a page, with their classes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[tuple[str, list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append((dict(attrs).get("class") or "", []))
        elif tag in ("td", "th"):
            self.rows[-1][1].append("")

    def handle_data(self, data):
        if self.rows and self.rows[-1][1]:
            self.rows[-1][1][-1] += data.strip()

    def of(self, kind: str, label: str, rank: str) -> list[str]:
        return next(cells for found, cells in self.rows if found == kind and cells[:2] == [label, rank])


@pytest.fixture(scope="module")
def some_runs(tmp_path_factory):
    """Made-up curves for two of the eight runs that are behind the results."""
    folder = tmp_path_factory.mktemp("runs")
    for cell in ("lora_r2-cot-seed0", "mos_r8-cot-seed0"):
        name = json.loads((SMOL / "cells" / "smollm2_135m" / f"{cell}.json").read_text())["run"]
        path = folder / "smollm2_135m" / name / "metrics.jsonl"
        path.parent.mkdir(parents=True)
        lines = [{"eval_loss": 3.0, "step": 0}, *({"loss": 2 / step, "step": step} for step in (5, 10, 15))]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def page(some_runs):
    return report.page("smol", SMOL, some_runs)


@pytest.fixture
def changed(tmp_path):
    """`changed(edit)`: the committed results with their table edited."""

    def make(edit):
        folder = shutil.copytree(SMOL, tmp_path / "smol")
        frame = pd.read_csv(folder / "table2.csv", dtype=str, keep_default_na=False)
        edit(frame).to_csv(folder / "table2.csv", index=False)
        return report.page("smol", folder, tmp_path / "none")

    return make


def test_the_table_has_the_measured_and_the_paper_s_numbers(page):
    csv = pd.read_csv(SMOL / "table2.csv")
    mine = csv[(csv.source == "measured") & (csv.method == "mos_r8") & (csv.seed == "mean")]
    scores = mine.set_index("column").value
    expected = [f"{value:.2f}" for column, value in scores.items() if column != LOSS]
    expected += [f"{scores[LOSS]:.4f}" if LOSS in scores else "-"]  # published before the loss was kept
    rows = Rows(page)
    assert rows.of("measured", "MoS", "8 (of 4/8)")[2:] == ["measured", "610,560", *expected]
    printed = ["46.09", "37.29", "28.43", "50.21", "37.19", "19.12", "36.39"]
    assert rows.of("paper", "MoS", "4/8")[2:] == ["paper", "5.00M", *printed, "-"]
    assert rows.of("measured none", "MoS -sp", "16/32")[-1] == "not run"
    assert "XQuAD F1" in page  # a stand-in is never called by the name of the real one


def test_notes_and_intervals_are_in_it(page):
    assert "Profile <code>smol</code>" in page
    assert "are not comparable with it" in page
    assert "<em>not</em> significantly different" in page
    assert ["LoRA", "2", "7.5 to 30.0"] in [cells[:3] for _, cells in Rows(page).rows]


def test_it_needs_no_other_file_no_script_and_no_network(page):
    kinds = r"""(?:src|href|srcset|data|action)\s*=\s*["']([^"']*)|url\(([^)]*)\)|@import([^;]*)"""
    addresses = re.findall(kinds, page)
    assert {"".join(found)[:1] for found in addresses} <= {"#"}
    for tag in ("<script", "<link", "<img", "<iframe", "<object", "<embed"):
        assert tag not in page


def test_plots_are_inline_and_follow_the_page_s_colours(page):
    described = re.findall(r'<svg role="img" aria-label="([^"]*)"', page)
    assert described == [
        "average score against trainable parameters, measured, with 95% intervals",
        "average score against trainable parameters, printed in the paper",
        "average score of MoS and its variants, printed in the paper",
        "training and validation loss on cot, smollm2_135m",
    ]
    assert INK not in page
    assert "currentColor" in page
    assert "<metadata" not in page


def test_runs_that_are_not_here_are_named_and_their_losses_listed(page, some_runs):
    assert f"No curve for 6 of 8 trained runs, which are not in <code>{some_runs}</code>" in " ".join(page.split())
    assert "<li><code>smollm2_135m/lora_r2-r2-flan_v2-seed0-" in page
    assert "<li><code>smollm2_135m/lora_r2-r2-cot-seed0-" not in page
    losses = {cells[0].rpartition("-")[0]: cells[1:5] for _, cells in Rows(page).rows}
    assert losses["smollm2_135m/mos_r8-r8-cot-seed0"] == ["1.3559", "1.8217", "2.2388", "1.9348"]


def test_without_any_run_there_is_no_curve(tmp_path):
    page = report.page("smol", SMOL, tmp_path / "runs")
    assert "No curve for 8 of 8 trained runs" in page
    assert "training and validation loss on" not in page


def test_a_measured_ablation_is_drawn_beside_the_paper_s(changed):
    def edit(frame):
        measured = frame.source == "measured"
        frame.loc[measured & (frame.label == "LoRA"), ["label", "rank"]] = ["MoS -sp", "16/32"]
        frame.loc[measured & (frame.label == "MoS"), "rank"] = "16/32"
        return frame

    page = changed(edit)
    assert "average score of MoS and its variants, measured, with 95% intervals" in page
    assert "4.44 (+1.25)" in page  # measured: MoS 3.19
    assert "36.54 (-1.09)" in page.replace("−", "-")  # the paper's: MoS 37.63
    assert "none of these rows was run" not in page


def test_an_average_over_fewer_columns_stands_beside_none_of_the_paper_s(changed):
    """A table of DATASETS=cot has the column of GSM8K alone; the paper's average is over six."""
    page = changed(lambda frame: frame[(frame.source == "paper") | frame.column.isin(["gsm8k", "avg", LOSS])])
    mine, theirs = Rows(page).of("measured", "LoRA", "2"), Rows(page).of("paper", "LoRA", "2")
    assert len(mine) == len(theirs) == 7  # method, rank, source, parameters, GSM8K, average, loss
    assert theirs[-3:] == ["26.28", "-", "-"]


def test_the_same_results_give_the_same_page(page, some_runs):
    assert report.page("smol", SMOL, some_runs) == page


def test_markup_in_a_note_is_text():
    assert report._html("a < b, `c<d>`, 2 * 3 * 4") == "a &lt; b, <code>c&lt;d&gt;</code>, 2 * 3 * 4"


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_without_results_one_sentence_names_the_folder_and_the_command(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=f"{name} holds no table; .* `make table2 PROFILE=smol`"):
        report.page("smol", tmp_path / name, tmp_path)


def command(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "scripts.report", *overrides]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_command_reads_what_the_repository_publishes_where_one_has_no_own(tmp_path):
    done = command(tmp_path, "profile=smol")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "report/smol.html\n"
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["smol.html"]


def test_the_command_shows_the_experiment_of_its_overrides(tmp_path):
    done = command(tmp_path, "profile=smol", "rates=own")
    assert (done.returncode, done.stdout) == (0, "report/smol+rates=own.html\n"), done.stderr
    assert "each method&#39;s own" in (tmp_path / "report" / "smol+rates=own.html").read_text(encoding="utf-8")


def test_the_command_without_results_fails_in_one_line_and_writes_nothing(tmp_path):
    done = command(tmp_path, "profile=paper")  # the repository publishes none of it
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: results/paper holds no table; make one first, e.g. `make table2 PROFILE=paper`"
    )
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "report").exists()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed (Debian: apt-get install chromium)")
def test_a_browser_without_network_shows_the_numbers(page, tmp_path):
    path = tmp_path / "smol.html"
    path.write_text(page)
    offline = ["--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9"]
    headless = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
    done = subprocess.run(
        [*headless, *offline, "--dump-dom", path.as_uri()], capture_output=True, text=True, check=True, timeout=300
    )
    assert Rows(done.stdout).of("measured", "LoRA", "2")[4] == "17.50"
    assert Rows(done.stdout).of("paper", "LoRA", "2")[-2:] == ["34.98", "-"]
    assert done.stdout.count("<svg") == 4
