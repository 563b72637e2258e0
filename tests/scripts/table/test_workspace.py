"""The W&B workspace, built without a network, and the answer where there is no key."""

import os
import subprocess
import sys

import pytest
import wandb_workspaces.reports.v2 as wr

from scripts.config import ROOT
from scripts.table import workspace as dashboard

COLUMNS = ["mmlu", "tydiqa_f1"]


@pytest.fixture
def panels():
    workspace = dashboard.workspace("someone", "mos", "table2", COLUMNS)
    return {section.name: section.panels for section in workspace.sections}


def test_a_scatter_per_column_of_score_against_parameters(panels):
    scatters = panels["Score against trainable parameters"]
    assert [(plot.x.name, plot.y.name) for plot in scatters] == [
        ("trainable_parameters", "score/mmlu"),
        ("trainable_parameters", "score/tydiqa_f1"),
    ]


def test_losses_are_grouped_by_row(panels):
    losses = panels["Loss by method"]
    assert [plot.y for plot in losses] == [["train/loss"], ["eval/loss"]]
    assert {(plot.x, plot.groupby) for plot in losses} == {("train/global_step", wr.Metric("JobType"))}


def test_the_ablation_is_bars_of_what_only_its_rows_log(panels):
    assert [(type(plot), plot.metrics) for plot in panels["Ablation"]] == [
        (wr.BarPlot, ["ablation/mmlu"]),
        (wr.BarPlot, ["ablation/tydiqa_f1"]),
    ]


def test_what_would_be_sent():
    view = dashboard.workspace("someone", "mos", "table2", COLUMNS)._to_model()
    assert (view.entity, view.project) == ("someone", "mos")
    spec = view.spec.model_dump_json()
    assert '"jobType"' in spec
    assert "table2" in spec


def test_without_a_key_one_sentence_points_to_the_report():
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_API_KEY"}
    command = [sys.executable, "-m", "scripts.dashboard"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: WANDB_API_KEY is not set")
    assert "make report" in done.stderr
