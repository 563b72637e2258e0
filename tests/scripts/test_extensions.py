"""A row, a benchmark, a training set and a base model that the paper lacks, each added as CONTRIBUTING.md says.

Each is added to a temporary copy of the configs, and a table is made with it: trained, evaluated and rendered.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from data_prep.micro import generate
from scripts.config import ROOT

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 1024,
}  # fmt: skip
BENCHMARK = """# @package benchmark.echo
name: echo
version: 1
title: Echo
module: MODULE
columns: {echo: EM}
average: items
max_new_tokens: 4
stops: {chat: {authors: [], tulu: []}, nochat: {authors: [], tulu: []}}
published: {items: 3, prompt_tokens: null, longest_prompt_tokens: null}
source: {folder: eval/echo, files: {test: [test.jsonl]}, upstream: []}
"""
MODULE = '''"""Echo: say the word again."""

import json
from dataclasses import dataclass

from data_prep.chat import user_prompt
from data_prep.sources import single
from eval.benchmarks import Item, Verdict, matches

METRICS = ("exact match",)


@dataclass(frozen=True)
class Echo:
    words: tuple[str, ...]
    label: str = ""

    def __len__(self):
        return len(self.words)


def load(files):
    lines = single(files, "test").read_text(encoding="utf-8").splitlines()
    return Echo(tuple(json.loads(line)["word"] for line in lines))


def items(raw, tokenizer, prompting):
    return [Item(f"echo/{word}", "echo", user_prompt(f"Say {word}.", ""), word) for word in raw.words]


def parse(output, item):
    return output.strip()


def score(item, predictions):
    return Verdict((100.0 * matches(predictions[0], item.gold),))
'''
READER = """from data_prep.files import load_rows, texts, usable
from data_prep.readers.conversation import conversation
from data_prep.sources import single


def read(files, tally):
    rows = usable(load_rows(single(files, "rows")), lambda row: texts(row, "ask", "reply"), tally)
    for number, (prompt, reply) in enumerate(rows):
        yield conversation("riddles", number, prompt, reply)
"""
DATASET = """name: riddles
benchmarks: [gsm8k]
max_broken_share: 0.001
reader: {_target_: riddles.read}
source: {messages: null, folder: train/riddles, files: {rows: [riddles.json]}, upstream: []}
"""
MODEL = """name: tiny_qwen3
source: {kind: local, path: "FOLDER"}
architecture: ${config_json:}
"""
SMALL = [
    *("profile=micro", "engine=hf", "limit=2", "workers=1", "preflight=data", "trainer.max_steps=2"),
    *("trainer.batch_size=2", "trainer.validation_size=4", "trainer.max_length=1024", "trainer.eval_steps=2"),
    *("evaluation.max_new_tokens=4", "engine.max_model_len=1024"),
]


class Clone:
    """A copy of the configs and, where a module is added, of the packages; with a data folder that may grow."""

    def __init__(self, folder: Path, shared: Path) -> None:
        self.folder, self.shared, self.data = folder, shared, folder / "data"
        shutil.copytree(ROOT / "configs", folder / "configs")
        shutil.copytree(shared / "data", self.data)

    def add(self, name: str, text: str) -> None:
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / name).write_text(text, encoding="utf-8")

    def change_table(self, **changes: object) -> None:
        """Set keys of Table 2; `rows` are added to LoRA's at rank 2."""
        path = self.folder / "configs" / "table" / "table2.yaml"
        table = yaml.safe_load(path.read_text(encoding="utf-8")) | {
            "claims": [],
            "columns": ["gsm8k"],
            "datasets": ["cot"],
        }
        lora = next(row for row in table["rows"] if row["methods"] == ["lora_r2"])
        table |= {"rows": [lora], **changes}
        if "rows" in changes:
            table["rows"] = [lora, *table["rows"]]
        path.write_text(yaml.safe_dump(table), encoding="utf-8")

    def make(self, *overrides: str, code: Path = ROOT, model: str = "local") -> "Made":
        """Make Table 2 with what was added."""
        places = [f"{name}_dir={self.folder / name}" for name in ("runs", "results")]
        command = [
            *(sys.executable, "-m", "scripts.tables", *SMALL, "table=table2", f"data={self.data}", *places),
            *(f"cache_dir={self.shared / 'cache'}", f"models={{7b:{model}}}", f"local_model={self.shared / 'llama'}"),
        ]
        paths = os.pathsep.join(map(str, (code, self.folder)))
        environment = {"MOS_CONFIGS": str(self.folder / "configs"), "PYTHONPATH": paths, "WANDB_MODE": "disabled"}
        done = subprocess.run(
            [*command, *overrides], cwd=self.folder, env=os.environ | environment, capture_output=True, encoding="utf-8"
        )
        assert done.returncode == 0, done.stderr
        return Made(done, self.folder)


class Made:
    """The table that a command made."""

    def __init__(self, done: "subprocess.CompletedProcess[str]", folder: Path) -> None:
        (path,) = (folder / "results" / "micro").rglob("table2.csv")
        self.lines = done.stdout.splitlines()
        frame = pd.read_csv(path, dtype={"rank": str})
        self.measured = frame[(frame.source == "measured") & (frame.seed == "mean")]
        assert path.with_suffix(".png").is_file()
        self.cells = [json.loads(cell.read_text(encoding="utf-8")) for cell in path.parent.rglob("cells/*/*.json")]

    def score(self, label: str, column: str) -> float:
        (value,) = self.measured[(self.measured.label == label) & (self.measured.column == column)].value
        return float(value)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """Generated data, and two tiny random models with the byte tokenizer."""
    folder = tmp_path_factory.mktemp("extensions")
    shutil.copytree(generate(folder / "cache"), folder / "data")
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    torch.manual_seed(0)
    own = {**SIZES, "vocab_size": len(tokenizer)}
    networks = {
        "llama": LlamaForCausalLM(LlamaConfig(**own)),
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**own, head_dim=8)),
    }
    for name, network in networks.items():
        network.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return folder


@pytest.fixture
def clone(tmp_path: Path, shared: Path) -> Clone:
    return Clone(tmp_path, shared)


@pytest.mark.slow
def test_a_row(clone: Clone) -> None:
    clone.add("configs/method/mos_mine.yaml", "defaults: [mos, _self_]\nname: mos_mine\nr: 3\n")
    clone.change_table(rows=[{"label": "MoS", "rank": "3", "methods": ["mos_mine"], "against": "lora_r2"}])
    made = clone.make()
    assert 0 <= made.score("MoS", "gsm8k") <= 100
    assert "| MoS | 3 | paper | - | - | - | - |" in made.lines
    assert "| LoRA | 2 | paper† | 5.00M | 26.28 | - | - |" in made.lines  # the paper's average is over other columns


@pytest.mark.slow
def test_a_benchmark_of_a_known_kind(clone: Clone) -> None:
    clone.add("configs/benchmark/echo.yaml", BENCHMARK.replace("MODULE", "gsm8k"))
    clone.add("data/eval/echo/test.jsonl", '{"question": "What is 1 and 1?", "answer": "#### 2"}\n')
    clone.add("configs/dataset/cot.yaml", _with(clone, "configs/dataset/cot.yaml", "[gsm8k]", "[gsm8k, echo]"))
    clone.change_table(columns=["echo", "gsm8k"])
    made = clone.make()
    assert 0 <= made.score("LoRA", "echo") <= 100
    assert any(line.startswith("| Method | Rank | Source | # Param. | Echo EM | GSM8K | Avg. |") for line in made.lines)
    assert "| LoRA | 2 | paper† | 5.00M | - | 26.28 | - | - |" in made.lines


@pytest.mark.slow
def test_a_benchmark_with_a_module_of_its_own(clone: Clone) -> None:
    for package in ("mos", "data_prep", "eval", "scripts"):
        shutil.copytree(ROOT / package, clone.folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "results" / "printed", clone.folder / "results" / "printed")
    clone.add("eval/benchmarks/echo.py", MODULE)
    clone.add("configs/benchmark/echo.yaml", BENCHMARK.replace("MODULE", "echo"))
    clone.add("data/eval/echo/test.jsonl", "".join(f'{{"word": "{word}"}}\n' for word in ("a", "b", "c")))
    clone.add("configs/dataset/cot.yaml", _with(clone, "configs/dataset/cot.yaml", "[gsm8k]", "[echo]"))
    clone.change_table(columns=["echo"])
    made = clone.make("limit=null", code=clone.folder)
    assert made.score("LoRA", "echo") in (0, 100 / 3, 200 / 3, 100)
    assert [cell["evaluation"]["echo"]["items"] for cell in made.cells] == [3]


@pytest.mark.slow
def test_a_training_set(clone: Clone) -> None:
    clone.add("riddles.py", READER)
    clone.add("configs/dataset/riddles.yaml", DATASET)
    rows = [{"ask": f"What is {n} and {n}?", "reply": f"It is {2 * n}."} for n in range(20)]
    clone.add("data/train/riddles/riddles.json", json.dumps(rows))
    clone.change_table(datasets=["riddles"])
    made = clone.make()
    assert [(cell["dataset"], cell["training"]["data"]["train"]) for cell in made.cells] == [("riddles", 16)]
    assert "- Training examples: riddles 16." in made.lines


@pytest.mark.slow
def test_a_base_model(clone: Clone, shared: Path) -> None:
    clone.add("configs/model/tiny_qwen3.yaml", MODEL.replace("FOLDER", str(shared / "qwen3")))
    clone.change_table(rows=[{"label": "MoS", "rank": "4", "methods": ["mos_r4"], "against": "lora_r2"}])
    made = clone.make(model="tiny_qwen3")
    counted = dict(zip(made.measured.label, made.measured.params, strict=False))
    assert int(counted["MoS"]) == int(counted["LoRA"]) == 4 * 2 * (4 * 32 + 16 + 2 * 8 + 16 + 3 * (32 + 64))
    assert {cell["config"]["model"]["architecture"]["model_type"] for cell in made.cells} == {"qwen3"}


def _with(clone: Clone, name: str, old: str, new: str) -> str:
    text = (clone.folder / name).read_text(encoding="utf-8")
    assert old in text
    return text.replace(old, new)
