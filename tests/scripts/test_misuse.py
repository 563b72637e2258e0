"""Every misuse of the extension points ends before anything is trained, with exit code 1 and one sentence."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from scripts.config import ROOT

MINE = """name: mine
title: "A table that the paper lacks"
model: 7b
datasets: [cot]
columns: [gsm8k]
rows:
  - {label: LoRA, rank: "2", methods: [lora_r2]}
  - {label: MoS, rank: "4", methods: [mos_r4], against: lora_r2}
claims:
  - {text: MoS wins, row: [MoS, "4"], relation: higher, than: [LoRA, "2"]}
"""
DOLLY = """name: dolly
benchmarks: [gsm8k]
max_broken_share: 0.001
reader: {_target_: data_prep.readers.flan.read_cot, per_file: 10}
source:
  messages: null
  folder: train/cot
  files: {zero_shot: [cot_zsopt.jsonl], few_shot: [cot_fsopt.jsonl]}
  upstream: []
"""
GSM_HARD = """# @package benchmark.gsm_hard
name: gsm_hard
version: 1
title: GSM-Hard
module: gsm8k
columns: {gsm_hard: ""}
average: items
max_new_tokens: 48
stops: {chat: {authors: [], tulu: []}, nochat: {authors: ["x"], tulu: ["x"]}}
published: {items: 10, prompt_tokens: null, longest_prompt_tokens: null}
source: {folder: eval/gsm8k, files: {test: [test.jsonl]}, upstream: []}
"""
METHOD = "defaults: [mos, _self_]\nname: mos_mine\nr: 4\n"
TABLE, BENCHMARK, WITH_HARD = "table/mine.yaml", "benchmark/gsm_hard.yaml", ["columns: [gsm8k]", "columns: [gsm_hard]"]


def table(old, new, *overrides, **files):
    """A command on the table `mine` with one text in its yaml replaced."""
    return {"command": ["tables", *overrides], "files": {TABLE: [old, new], **files}}


def benchmark(old, new):
    """A command on a table of a new benchmark with one text in its yaml replaced."""
    assert old in GSM_HARD
    files = {TABLE: WITH_HARD, BENCHMARK: GSM_HARD.replace(old, new), "dataset/cot.yaml": ["[gsm8k]", "[gsm_hard]"]}
    return {"command": ["tables"], "files": files}


def method(text):
    """A command on a table with a new method."""
    return table("methods: [mos_r4]", "methods: [mos_mine]", **{"method/mos_mine.yaml": text})


def command(*words):
    return {"command": list(words), "files": {}}


CASES = {
    "column": (table("[gsm8k]", "[gsm9k]"), "Table 'mine': Unknown column 'gsm9k'. Did you mean 'gsm8k'? Known: "),
    "no column": (table("[gsm8k]", "[]"), "table.columns=[] is refused: list should have at least 1 item"),
    "repeated column": (
        table("[gsm8k]", "[gsm8k, gsm8k]"),
        "table.columns=['gsm8k', 'gsm8k'] is refused: gsm8k is given",
    ),
    "two data sets": (
        table("[cot]", "[cot, dolly]", **{"dataset/dolly.yaml": DOLLY}),
        "Table 'mine': cot and dolly both train for the benchmark 'gsm8k', but exactly one must",
    ),
    "no data set": (table("[cot]", "[flan_v2]"), "Table 'mine': none of its datasets trains for the benchmark 'gsm8k'"),
    "idle data set": (
        table("[cot]", "[cot, flan_v2]"),
        "Table 'mine': the dataset 'flan_v2' trains for bbh, which no column shows; leave it out",
    ),
    "unknown data set": (table("[cot]", "[cott]"), "Table 'mine': Unknown dataset 'cott'. Did you mean 'cot'?"),
    "repeated data set": (table("[cot]", "[cot, cot]"), "table.datasets=['cot', 'cot'] is refused: cot is given twice"),
    "data set's name": (
        table("[cot]", "[dolly]", **{"dataset/dolly.yaml": DOLLY.replace("name: dolly", "name: cot")}),
        "configs/dataset/dolly.yaml says name: cot; write name: dolly.",
    ),
    "unknown method": (table("[mos_r4]", "[mos_r5]"), "Table 'mine': Unknown method 'mos_r5'. Did you mean 'mos_r"),
    "repeated method": (table("[mos_r4]", "[lora_r2]"), "Table 'mine' has the method 'lora_r2' twice; its cells would"),
    "method twice in a row": (
        table("[mos_r4]", "[mos_r4, mos_r4]"),
        "table.rows[1].methods=['mos_r4', 'mos_r4'] is refus",
    ),
    "repeated row": (table('MoS, rank: "4"', 'LoRA, rank: "2"'), "Table 'mine' has the row 'LoRA 2' twice; its cells"),
    "row without rank": (table(' rank: "4",', ""), "table.rows[1].rank is not set"),
    "rank as a number": (
        table('rank: "4"', "rank: 4"),
        "table.rows[1].rank=4 is refused: input should be a valid string. E.g. ",
    ),
    "row of no method": (table("[mos_r4]", "[]"), "table.rows[1].methods=[] is refused: list should have at least 1"),
    "key of a row": (table("against:", "agianst:"), "Unknown setting table.rows[1].agianst; there are label, rank, "),
    "no mapping": (table("rows:", "rows:\n  - mos_r4"), "table.rows[0]=mos_r4 is no mapping of label, rank, methods"),
    "key of a table": (table("title:", "titel:"), "table.title is not set"),
    "against": (
        table("against: lora_r2", "against: lora_r8"),
        "Table 'mine', row MoS, against: Unknown method of this table",
    ),
    "claim's row": (
        table('row: [MoS, "4"]', 'row: [MoS, "5"]'),
        "Table 'mine', claim 'MoS wins': the table has no row MoS 5.",
    ),
    "claim's relation": (table("higher", "above"), "table.claims[0].relation=above is refused: "),
    "claim's key": (table("than:", "then:"), "table.claims[0].than is not set"),
    "role of the model": (table("model: 7b", "model: 8b"), "Unknown model of table 'mine' '8b'. Known: 13b, 7b."),
    "model": (
        command("tables", "model=llama2_7b"),
        "model=llama2_7b would have no effect: each cell has its own; use models=",
    ),
    "method": (
        command("tables", "method=mos_r8"),
        "method=mos_r8 would have no effect: each cell has its own; use methods=[",
    ),
    "dataset": (
        command("tables", "dataset=cot"),
        "dataset=cot would have no effect: each cell has its own; use table.datasets",
    ),
    "seed": (command("tables", "seed=3"), "seed=3 would have no effect: each cell has its own; use seeds=[3]."),
    "model of a plan": (command("plan", "model=llama2_7b"), "model=llama2_7b would have no effect: "),
    "method of a search": (command("search", "method=mos_r8"), "method=mos_r8 would have no effect: "),
    "seed of the claims": (command("claims", "seed=3"), "seed=3 would have no effect: "),
    "dataset of a preflight": (command("preflight", "dataset=cot"), "dataset=cot would have no effect: "),
    "methods of the parameters": (command("params", "method=mos_r8"), "method=mos_r8 would have no effect"),
    "model of an evaluation": (
        command("evaluate", "runs=[x]", "model=llama2_7b"),
        "model=llama2_7b would have no effect",
    ),
    "no checkout to compare with": (
        command("crosscheck", "runs=[x]"),
        "open_instruct names no checkout: git clone https://github.com/allenai/open-instruct",
    ),
    "model of a comparison": (command("crosscheck", "model=llama2_7b"), "model=llama2_7b would have no effect"),
    "two benchmarks, one column": (
        benchmark('{gsm_hard: ""}', '{gsm8k: ""}'),
        "The benchmarks 'gsm8k' and 'gsm_hard' both have the column 'gsm8k'; rename it",
    ),
    "too many columns": (
        benchmark('{gsm_hard: ""}', '{gsm_hard: "", gsm_harder: ""}'),
        "configs/benchmark/gsm_hard.yaml: columns are gsm_hard, gsm_harder, but eval/benchmarks/gsm8k.py gives 1 score",
    ),
    "columns left out": (benchmark('columns: {gsm_hard: ""}\n', ""), "configs/benchmark/gsm_hard.yaml lacks columns."),
    "module": (
        benchmark("module: gsm8k", "module: gsm"),
        "configs/benchmark/gsm_hard.yaml names the module 'gsm', but",
    ),
    "title": (benchmark("title: GSM-Hard\n", ""), "configs/benchmark/gsm_hard.yaml lacks title."),
    "benchmark's version": (
        benchmark("version: 1", "version: one"),
        "configs/benchmark/gsm_hard.yaml: version is 'one'; use",
    ),
    "key of a benchmark": (
        benchmark("version: 1", "version: 1\nshot: 1"),
        "configs/benchmark/gsm_hard.yaml has the key 'shot'",
    ),
    "average": (
        benchmark("average: items", "average: mean"),
        "configs/benchmark/gsm_hard.yaml: average is 'mean'; choose",
    ),
    "no package": (benchmark("# @package benchmark.gsm_hard\n", ""), "A file of configs/benchmark sets benchmark."),
    "other package": (
        benchmark("@package benchmark.gsm_hard", "@package benchmark.hard"),
        "A file of configs/benchmark sets benchmark.hard, but says",
    ),
    "method's rank": (method(METHOD.replace("r: 4", "r: 400")), "r=400 needs "),
    "method's setting": (
        method(f"{METHOD}config: {{ranks: 4}}\n"),
        "MosConfig.__init__() got an unexpected keyword argument",
    ),
    "method's name": (
        method(METHOD.replace("mos_mine", "mos")),
        "configs/method/mos_mine.yaml says name: mos; write name: ",
    ),
    "method's base": (method(METHOD.replace("[mos,", "[moss,")), "Unknown method 'moss'; choose one of "),
    "method's version": (
        method("name: mos_mine\nlabel: X\nconfig: null\n"),
        "configs/method/mos_mine.yaml lacks version; see",
    ),
    "no yaml": (table("title:", "title: ["), "while parsing a flow "),
    "evaluation.variant": (
        command("tables", "evaluation.variant=author"),
        "evaluation.variant=author is refused: input should",
    ),
    "evaluation.when": (
        command("tables", "evaluation.when=never"),
        "evaluation.when=never is refused: input should be 'end'",
    ),
    "evaluation.max_new_tokens": (
        command("tables", "evaluation.max_new_tokens=0"),
        "evaluation.max_new_tokens=0 is refused",
    ),
    "sampling": (command("tables", "evaluation.humaneval.top_p=2"), "evaluation.humaneval.top_p=2 is refused"),
    "engine": (command("tables", "engine=hff"), "Unknown engine 'hff'; choose one of hf, vllm"),
    "engine.dtype": (command("tables", "engine.dtype=half"), "engine.dtype=half is refused: input should be 'auto', "),
    "engine.max_model_len": (command("tables", "engine.max_model_len=long"), "engine.max_model_len=long is refused"),
    "trainer": (
        command("tables", "trainer.max_steps=0"),
        "trainer.max_steps=0 is refused: input should be greater than 0",
    ),
    "scheduler": (
        command("tables", "trainer.scheduler=none"),
        "trainer.scheduler=none is refused: input should be 'linear', ",
    ),
    "launcher": (command("tables", "launcher=slrum"), "Unknown launcher 'slrum'. Did you mean 'slurm'?"),
    "no data": (command("tables", "data=DATA"), "DATA/eval/gsm8k is not a folder: data=DATA must hold eval/gsm8k"),
    "a role of the model": (command("tables", "models={7b:moss}"), "Unknown model 'moss'; choose one of "),
    "model without a folder": (
        command("tables", "models={7b:local}"),
        "A local model needs its checkpoint folder: local_model=",
    ),
    "folder without a model": (command("tables", "models={7b:local}", "local_model=DATA"), "model.source.path"),
    "method of a plan": (command("plan", "methods=[lora_r3]"), "No table has it: Unknown method 'lora_r3'."),
    "method of a preflight": (command("preflight", "methods=[lora_r3]"), "No table has it: Unknown method 'lora_r3'."),
    "search of nothing": (command("search", "search.grid=null"), "search.grid of 'lr' names no setting"),
    "search's method": (command("search", "search.method=lora_r9"), "Unknown method 'lora_r9'"),
    "gpu": (command("plan", "gpus=[b200]"), "Unknown GPU 'b200'. Did you mean 'h200'?"),
    "table": (command("tables", "table=table4"), "Unknown table 'table4'; choose one of mine, table1, table2, table3."),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What each case ended with; all are run by one process, since a process takes longer to start than a case."""
    folder = tmp_path_factory.mktemp("misuse")
    shutil.copytree(ROOT / "configs", folder / "configs")
    (folder / "configs" / TABLE).write_text(MINE, encoding="utf-8")
    (folder / "DATA").mkdir()
    places = [f"{key}_dir={folder / key}" for key in ("runs", "cache", "results")]
    cases = [case | {"command": _completed(case["command"], places)} for case, _ in CASES.values()]
    done = subprocess.run(
        [sys.executable, "-m", "tests.scripts.misuse"],
        input=json.dumps(cases),
        env=os.environ | {"MOS_CONFIGS": str(folder / "configs"), "PYTHONPATH": str(ROOT), "WANDB_MODE": "disabled"},
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
    assert not (folder / "runs").exists()
    assert not (folder / "results").exists()
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


def _completed(words, places):
    """The command with what all cases share; what a case says itself comes last, and counts."""
    name, *own = words
    tables = ["table=mine"] if name in ("tables", "preflight", "plan") else []
    return [name, "profile=micro", *tables, "data=generated", "preflight=data", *places, *own]


@pytest.mark.parametrize("name", CASES)
def test_a_misuse_is_one_sentence(outcomes, name):
    sentence = CASES[name][1]
    assert str(outcomes[name]).startswith(f"error: {sentence}")
    assert "\n" not in outcomes[name]
