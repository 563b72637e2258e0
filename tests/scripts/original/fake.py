"""A tiny checkout that is laid out as open-instruct, and a stand-in for the package `evaluate`. All text is ours."""

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

from data_prep.storage import digest, write_json
from eval import benchmarks
from eval.benchmarks import gsm8k
from eval.predictions import Store
from eval.session import Benchmark
from scripts.original.ours import Trial

UTILS = """
def load_hf_lm(**_):
    raise AssertionError("a model was loaded")


def get_next_word_predictions(*_, **__):
    raise AssertionError("a model was asked")
"""
SUMS = """
import argparse, json, os
import evaluate, vllm
from eval.utils import load_hf_lm

parser = argparse.ArgumentParser()
for name in ("data_dir", "save_dir", "model_name_or_path"):
    parser.add_argument("--" + name)
parser.add_argument("--use_chat_format", action="store_true")
args = parser.parse_args()
rows = [json.loads(line) for line in open(args.data_dir + "/test.jsonl")]
load_hf_lm()
asked = [ASK for row in rows]
before, after = ("<|user|>\\n", "\\n<|assistant|>\\nAnswer:") if args.use_chat_format else ("", "\\nAnswer:")
prompts = [before + text + after for text in asked]
answers = vllm.LLM(model=args.model_name_or_path).generate(prompts, vllm.SamplingParams(temperature=0, stop=STOP))
found = [answer.outputs[0].text.split()[-1] if answer.outputs[0].text else "" for answer in answers]
gold = [row["answer"].split()[-1] for row in rows]
said = evaluate.load("exact_match").compute(predictions=found, references=gold)
json.dump(said, open(os.path.join(args.save_dir, "metrics.json"), "w"))
"""
ASK = '"Answer the following question.\\n\\nQuestion: " + row["question"]'
EVALUATE = """
class Metric:
    def _compute(self, predictions, references):
        return {"exact_match": sum(p == r for p, r in zip(predictions, references)) / len(predictions)}

    def compute(self, predictions, references):
        return self._compute(predictions, references)


def load(name):
    return Metric()
"""
YAML = """
module: eval.sums.run_eval
arguments: {data_dir: "${root}"}
flags: []
items: {file: metric.jsonl, columns: {gsm8k: exact_match}, percent: 100}
overall: {gsm8k: exact_match}
"""
DATA_SCRIPT = """
import argparse, json, os

parser = argparse.ArgumentParser()
for name in ("raw_data_dir", "output_dir", "dataset"):
    parser.add_argument("--" + name)
args = parser.parse_args()
folder = os.path.join(args.output_dir, args.dataset)
os.makedirs(folder)
rows = [json.loads(line) for line in open(os.path.join(args.raw_data_dir, args.dataset, "lines.jsonl"))]
with open(os.path.join(folder, "data.jsonl"), "w") as file:
    for number, row in enumerate(rows):
        reply = row["targets"] + ("!" if number == 1 else "")
        messages = [{"role": "user", "content": row["inputs"] + "\\n"}, {"role": "assistant", "content": reply}]
        file.write(json.dumps({"id": f"flan_v2_{number}", "messages": messages}) + "\\n")
"""


def checkout(folder: Path, ask: str = ASK, stop: str = "None") -> Path:
    """The checkout, committed. ask: the expression of a question's text; stop: of the stops."""
    script = SUMS.replace("ASK", ask).replace("STOP", stop)
    files = {"eval/utils.py": UTILS, "eval/sums/run_eval.py": script, "open_instruct/reformat_datasets.py": DATA_SCRIPT}
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def committed(folder: Path) -> str:
    """Make a git repository of a folder; returns its commit."""

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=t", "-c", "user.email=t@t"]
        done = subprocess.run(["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "all")
    return git("rev-parse", "HEAD")


def install_evaluate(folder: Path, monkeypatch) -> None:
    """Put the stand-in for `evaluate` in reach of this process and of those that it starts."""
    folder.mkdir()
    (folder / "evaluate.py").write_text(EVALUATE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))


def configs(folder: Path, text: str = YAML) -> Path:
    """A folder of configs that has one benchmark to cross-check."""
    path = folder / "crosscheck" / "benchmark" / "gsm8k.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    return folder


def trial(folder: Path, outputs: list[str | None], chat: bool = True) -> Trial:
    """A run's answers to sums; None: the run does not answer this one. The right answer to the i-th is 2 * i."""
    root = folder / "data"
    root.mkdir()
    rows = [{"question": f"What is {i} plus {i}?", "answer": f"#### {2 * i}"} for i in range(len(outputs))]
    (root / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = {
        "name": "gsm8k",
        "module": "gsm8k",
        "columns": {"gsm8k": ""},
        "average": "items",
        "shots": 0,
        "stops": {"chat": {"authors": [], "tulu": []}, "nochat": {"authors": ["\n"], "tulu": ["\n"]}},
        "source": {"files": {"test": ["test.jsonl"]}},
    }
    benchmark = Benchmark(config, gsm8k.GSM8K(gsm8k.load({"test": [root / "test.jsonl"]}).test, "Sums"))
    items = gsm8k.items(benchmark.raw, None, benchmarks.prompting(config, "authors", chat))
    made = folder / "run" / "eval" / "gsm8k-0"
    with Store(made) as store:
        for item, output in zip(items, outputs, strict=True):
            if output is not None:
                record = {"id": item.id, "task": item.task, "prompt": item.prompt, "outputs": [output]}
                store.add(record | {"predictions": [], "gold": item.gold, "scores": {"gsm8k": 0.0}, "notes": []})
    metrics = {
        "benchmark": "gsm8k",
        "chat": chat,
        "variant": "authors",
        "limit": None,
        "average": "items",
        "decoding": {"samples": 1},
        "scores": {"gsm8k": 0.0},
        "prompts": digest([[item.id, item.prompt, item.gold] for item in items]),
    }
    write_json(made / "metrics.json", metrics)
    return Trial(
        folder / "run", made, benchmark, SimpleNamespace(save_pretrained=lambda path: Path(path).mkdir(parents=True))
    )
