"""lm-evaluation-harness beside us: the files we give it, and an exported adapter in its hands."""

import importlib.util
import json
import subprocess
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

import mos
from eval.benchmarks import Item
from eval.engines import Decoding
from eval.engines.hf import HfEngine
from mos.common.model import LINEAR_LAYERS
from scripts.cell import base_model
from scripts.config import ROOT, compose
from scripts.measure import evaluation as bench_eval
from scripts.measure import harness
from tests.asked import asked

ITEMS = [Item(str(n), "t", f"Question: What is {n} plus 5?\nAnswer:", str(n + 5)) for n in range(4)]
LETTER_ITEM = Item("0", "t", "Why?\nA. a\nB. b\nC. c\nD. d\nAnswer:", "C")


def test_the_harness_is_pinned_and_not_installed_here():
    assert harness.requirement().startswith("lm_eval[api]==")
    assert importlib.util.find_spec("lm_eval") is None
    assert harness.folder("cache").is_absolute() and harness.folder("cache").name.startswith("lm_eval-api-")


def test_a_task_file_holds_our_prompts_and_decoding(tmp_path):
    written = json.loads(harness.write_task(tmp_path / "sums.yaml", ITEMS, Decoding(16, ("\n",))).read_text())
    assert written["task"] == "sums"
    assert written["generation_kwargs"] == {"until": ["\n"], "max_gen_toks": 16, "do_sample": False}
    rows = json.loads(Path(written["dataset_kwargs"]["data_files"]["test"]).read_text())
    assert [(row["prompt"], row["gold"]) for row in rows] == [(item.prompt, item.gold) for item in ITEMS]


def test_letters_are_a_choice_of_four(tmp_path):
    written = json.loads(harness.write_task(tmp_path / "letters.yaml", [LETTER_ITEM], "ABCD").read_text())
    assert (written["output_type"], written["doc_to_choice"]) == ("multiple_choice", ["A", "B", "C", "D"])
    assert json.loads((tmp_path / "letters.json").read_text())[0]["gold"] == 2


def test_variables_of_the_user_win(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert harness.variables(1, 2)["OMP_NUM_THREADS"] == "7"


def test_same_answers_are_counted():
    assert bench_eval.agreeing(["a", "b"], [[["a"]], [["c"]]]) == 1
    likelihoods = [[[-2.0, False]], [[-1.0, False]], [[-3.0, False]], [[-4.0, False]]]  # B
    logits = [{"A": 0.0, "B": 1.0, "C": 0.5, "D": 0.0}, {"A": 2.0, "B": 1.0, "C": 0.5, "D": 0.0}]
    assert bench_eval.agreeing(logits, [likelihoods, likelihoods]) == 1


@pytest.fixture(scope="module")
def smol():
    return base_model.checkpoint(compose(["model=smollm2_135m"]).model, ROOT / compose([]).cache_dir)


@pytest.fixture(scope="module")
def exported(smol, tmp_path_factory):
    """A MoS adapter with random shards, exported as a standard LoRA."""
    folder = tmp_path_factory.mktemp("adapter")
    torch.manual_seed(0)
    config = mos.MosConfig(r=8, equivalent_rank=2, shards_per_vector=4, private_rank=1, target_modules=LINEAR_LAYERS)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(smol, dtype=torch.float32), config)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += 0.02 * torch.randn_like(weight)
    model.save_pretrained(folder / "mos")
    mos.export_lora(folder / "mos", folder / "lora")
    return folder / "lora"


@pytest.mark.slow
def test_an_exported_adapter_works_in_the_harness(smol, exported, tmp_path):
    cache_dir = ROOT / compose([]).cache_dir
    if not harness.is_ready(cache_dir):
        pytest.skip("lm-evaluation-harness has no environment here; `make bench-eval` builds it")
    decoding = Decoding(12, ("\n\n",))
    harness.write_task(tmp_path / "sums.yaml", ITEMS, decoding)
    arguments = f"pretrained={smol},lora_local_path={exported},dtype=float32,max_model_len=512,enforce_eager=True"
    command = [harness.environment(cache_dir) / "lm_eval", "run", "--model", "vllm", "--model_args", arguments]
    options = ["--tasks", "sums", "--include_path", tmp_path, "--output_path", tmp_path / "out", "--log_samples"]
    environment = harness.variables(1, None)
    done = subprocess.run([*command, *options], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (samples,) = (tmp_path / "out").rglob("samples_sums_*.jsonl")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    found = [row["resps"][0][0] for row in rows]
    engine = HfEngine(smol, [exported], dtype="float32")
    prompts = [item.prompt for item in ITEMS]
    expected = dict(engine.generate(asked(prompts, exported), decoding))
    assert found == [expected[index][0] for index in range(len(ITEMS))]
    base = dict(engine.generate(asked(prompts), decoding))
    assert found != [base[index][0] for index in range(len(ITEMS))]
