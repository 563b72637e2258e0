"""The command: what is wrong is one sentence before anything is trained; after a kill it goes on."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from scripts import capacity, make
from scripts.config import ROOT
from scripts.study.runs import Run, Store
from scripts.study.settings import refuse
from scripts.variables import overrides

ROW = "[{label: A, method: lora, overrides: ['method.r=1'], rate: 0.01}]"
NAMED = ["capacity.name=mine"]
ONE_ROW = [*NAMED, f"capacity.rows={ROW}", "capacity.doubled=[]", "capacity.claims=[]", "capacity.parity=[]"]


def ended(monkeypatch: pytest.MonkeyPatch, *given: str, **variables: str) -> str:
    """What `make capacity` with these variables and overrides exits with."""
    for name, text in {"PROFILE": "micro", **variables}.items():
        monkeypatch.setenv(f"MAKE_{name}", text)
    monkeypatch.setattr(sys, "argv", ["make", "capacity", *given])
    with pytest.raises(SystemExit) as exit:
        make.main()
    return str(exit.value.code)


def test_the_study_is_a_variable_of_make() -> None:
    assert overrides({"MAKE_PROFILE": "micro", "MAKE_STUDY": "full"}) == ["profile=micro", "capacity=full"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["capacity=half"], "error: Unknown capacity 'half'; choose one of full, quick."),
        (["method=lora"], "error: method=lora would have no effect: each run has its own; use capacity.rows."),
        (["method.r=3"], "error: method.r=3 would have no effect: each run has its own; use capacity.rows."),
        (["capacity.facts.count=9"], "error: capacity.facts.count=9 makes another study; give it a name too, e.g. "),
        (["capacity.name=a/b"], "error: capacity.name=a/b is refused: "),
        (["seed=3"], "error: seed=3 would have no effect: each run has its own; use capacity.seeds."),
        (["seeds=[7,8]"], "error: seeds=[7,8] would have no effect: each run has its own; use capacity.seeds."),
        (["methods=[mos_r8]"], "error: methods=[mos_r8] would have no effect: each run has its own; use capacity.rows"),
        (
            ["rates=own"],
            "error: rates=own would have no effect: each row has its own; use `rate` in capacity.rows.",
        ),
        (["trainer.learning_rate=1e-3"], "error: trainer.learning_rate=1e-3 would have no effect: use capacity.optim"),
        (["dataset=cot"], "error: dataset=cot would have no effect: what is learned are facts; use capacity.facts."),
        (["models={7b: local}"], "error: models={7b: local} would have no effect: a study has one; use model."),
        (["launcher=slurm"], "error: launcher=slurm would have no effect: runs are trained on this machine; use work"),
        (["limit=40"], "error: limit=40 would have no effect: a study reads capacity, model, local_model, profile, "),
        (["wandb.project=x"], "error: wandb.project=x would have no effect: a study reads "),
        (["benchmark=[mmlu]"], "error: benchmark=[mmlu] would have no effect: a study reads "),
        (["preflight=none"], "error: preflight=none would have no effect: a study reads "),
        (
            [*NAMED, ONE_ROW[1].replace("method.r=1", "trainer.warmup_ratio=0"), *ONE_ROW[2:]],
            "error: The row 'A' of capacity.rows is refused: its override trainer.warmup_ratio=0 does not begin with ",
        ),
        (
            [*NAMED, ONE_ROW[1].replace("method.r=1", "method.config.target_modules=all-linear"), *ONE_ROW[2:]],
            "error: The row 'A' of capacity.rows is refused: capacity.targets=['down_proj'] would replace "
            "method.config.target_modules=all-linear; leave one of the two out.",
        ),
        (
            [*NAMED, "capacity.optimizer.steps=0"],
            "error: capacity.optimizer.steps=0 is refused: input should be greater than 0",
        ),
        ([*NAMED, "capacity.seeds=[1]"], "error: capacity.seeds=[1] is refused: value should have at least 2 items"),
        ([*NAMED, "capacity.facts.counts=3", "capacity=full"], "error: Could not override 'capacity.facts.counts'."),
        ([*NAMED, "capacity.search_seed=1"], "error: capacity.search_seed=1 is one of capacity.seeds"),
        ([*NAMED, "capacity.doubled=[LoRA 3]"], "error: capacity.rows has no row LoRA 3; there are "),
        ([*ONE_ROW, "capacity.facts.values=900"], "error: capacity.facts needs the tokens 300 to 1199, but the base"),
        ([*ONE_ROW, "capacity.facts.count=262145"], "error: capacity.facts.count=262145 needs more pairs"),
        (
            [*ONE_ROW, "capacity.targets=[dawn_proj]"],
            "error: The row 'A' of capacity.rows is refused: Method lora adapts",
        ),
        (
            [*NAMED, ONE_ROW[1].replace("lora", "mos_minus"), *ONE_ROW[2:]],
            "error: The row 'A' of capacity.rows is refused: Unknown",
        ),
        (
            [*NAMED, ONE_ROW[1].replace("lora", "vanilla_chat"), *ONE_ROW[2:]],
            "error: The row 'A' of capacity.rows is refused: ",
        ),
        ([*NAMED, ONE_ROW[1].replace("r=1", "r=0"), *ONE_ROW[2:]], "error: The row 'A' of capacity.rows is refused: "),
    ],
)
def test_what_is_wrong_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: list[str], sentence: str
) -> None:
    places = [f"{name}_dir={tmp_path / name}" for name in ("runs", "results", "cache")]
    said = ended(monkeypatch, *places, *given)
    assert said.startswith(sentence)
    assert "\n" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "override",
    [
        *("capacity=full", "capacity.name=mine", "model=llama2_7b", "model.name=x", "+model.attention_inputs=[a]"),
        *("local_model=here", "profile=smol", "runs_dir=a", "cache_dir=b", "results_dir=c", "workers=2", "dry=true"),
        *("hydra.verbose=true", "hydra/job_logging=none"),
    ],
)
def test_what_a_study_reads_may_be_given(override: str) -> None:
    refuse([override])


def test_layers_of_a_row_s_own_stay() -> None:
    row = ONE_ROW[1].replace("method.r=1", "method.config.target_modules=[q_proj]")
    store = Store(["profile=micro", "capacity=full", *NAMED, row, *ONE_ROW[2:]])
    store.check()
    assert store.config(Run("A", 1, 0.01, 6)).method.config.target_modules == ["q_proj"]


def test_a_dry_study_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [f"{name}_dir={tmp_path / name}" for name in ("runs", "results", "cache")]
    monkeypatch.setattr(sys, "argv", ["capacity", "profile=micro", "capacity=quick", "dry=true", *places])
    capacity.main()
    printed = capsys.readouterr().out
    assert printed.startswith("0 of some 52 runs are finished; nothing is written.\n\n# Facts stored per trainable")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_after_a_kill_it_goes_on(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Killed with its workers while it trains; the same command then leaves the finished runs as they are."""
    given = [
        "profile=smol", "model=local", "model.name=tiny", f"model.source.path={tiny_checkpoint}", "workers=2",
        *(f"{name}_dir={tmp_path / name}" for name in ("runs", "results", "cache")), "capacity=full", *ONE_ROW,
        "capacity.facts={count: 40, first_token: 10, keys: 20, values: 8}", "capacity.optimizer.steps=30",
    ]  # fmt: skip
    command = [sys.executable, "-m", "scripts.capacity", *given]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True)
    folder = tmp_path / "runs/capacity/tiny"
    while len(list(folder.glob("*.json"))) < 3 and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = {path: path.read_bytes() for path in folder.glob("*.json")}
    assert before
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert all(path.read_bytes() == content for path, content in before.items())
    frame = pd.read_csv(tmp_path / "results/capacity/tiny/mine.csv")
    assert len(frame) == len(list(folder.glob("*.json"))) > len(before)
    assert list(frame[frame.part == "reported"].seed) == Store(given).study.seeds


def test_the_rates_of_quick_are_those_that_the_full_study_chose() -> None:
    found = pd.read_csv(ROOT / "results/capacity/micro_7b/full.csv")
    searched = found[found.part == "search"].sort_values("rate").sort_values("bits_per_parameter", kind="stable")
    chosen = dict(zip(searched.label, searched.rate, strict=True))  # the last of each label counts
    quick = Store(["capacity=quick", "profile=micro"]).study
    assert {row.label: row.rate for row in quick.rows} == {row.label: chosen[row.label] for row in quick.rows}


def test_the_page_has_the_numbers_of_the_study() -> None:
    page = (ROOT / "docs/capacity.md").read_text(encoding="utf-8")
    printed = (ROOT / "results/capacity/micro_7b/full.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| ([+-][\d.]+) \| ([^|]+) \| ([^|]+) \|$", page, flags=re.MULTILINE)
    assert len(rows) == 13
    for row in rows:
        claim, *numbers = map(re.escape, row)
        assert re.search(
            rf"^\| {claim} \| [^|]+ \| {numbers[0]} \| {numbers[1]} \| [^|]+ \| {numbers[2]} \|", printed, re.M
        )
