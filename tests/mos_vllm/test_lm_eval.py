"""lm-evaluation-harness against `vllm serve`, as a user calls it: an adapter is a model name."""

import json
import subprocess

import pytest

import mos
from eval.benchmarks import Item
from eval.engines import Decoding
from eval.golden import byte_tokenizer
from scripts.config import ROOT, compose
from scripts.measure import harness
from tests.mos_vllm.make import save_adapter, tiny_llama
from tests.mos_vllm.running import ready
from tests.mos_vllm.test_server import Server  # skips where vLLM or the client is not installed

pytestmark = pytest.mark.slow

ITEMS = [Item(str(n), "t", f"{n} + 5 =", "C") for n in range(4)]
CACHE = ROOT / compose([]).cache_dir


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    work = tmp_path_factory.mktemp("lm_eval")
    tokenizer = byte_tokenizer()
    model = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1}
    tiny_llama(**model).save_pretrained(work / "base")
    tokenizer.save_pretrained(work / "base")
    for number in range(3):
        folder = save_adapter(work / f"named/mos-{number}", seed=number, model=tiny_llama(**model))
        mos.export_lora(folder, work / f"exported/lora-{number}")
    harness.write_task(work / "tasks/sums.yaml", ITEMS, Decoding(12))
    harness.write_task(work / "tasks/letters.yaml", ITEMS, "ABCD")
    return work


@pytest.fixture(scope="module")
def server(work, plugin_environment):
    if not harness.is_ready(CACHE):
        pytest.skip("lm-evaluation-harness has no environment here; `make bench-eval` builds it")
    with ready(Server(work, plugin_environment)) as server:
        for name, folder in (("dynamic", "named/mos-1"), ("lora-0", "exported/lora-0"), ("lora-2", "exported/lora-2")):
            assert server.load(name, work / folder)[0] == 200
        yield server


@pytest.fixture
def answers(server, work, tmp_path):
    """A function that gives the answers of a model name to both tasks: texts, and log-likelihoods of four letters."""

    def ask(name):
        arguments = f"model={name},base_url={server.url}/v1/completions,tokenizer={work / 'base'},num_concurrent=2"
        arguments += ",tokenizer_backend=huggingface,add_bos_token=True"  # else a prompt of token ids lacks its <s>
        command = [harness.environment(CACHE) / "lm_eval", "run", "--model", "local-completions"]
        command += ["--model_args", arguments, "--tasks", "sums,letters"]
        command += ["--include_path", work / "tasks", "--output_path", tmp_path / name, "--log_samples"]
        done = subprocess.run(command, cwd=tmp_path, env=harness.variables(1, 1), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        found = {}
        for path in (tmp_path / name).rglob("samples_*.jsonl"):
            rows = sorted(map(json.loads, path.read_text(encoding="utf-8").splitlines()), key=lambda row: row["doc_id"])
            found[path.name.split("_")[1]] = [row["resps"] for row in rows]
        return found

    return ask


@pytest.mark.parametrize(("name", "as_lora"), [("static", "lora-0"), ("dynamic", "static-lora"), ("mos-2", "lora-2")])
def test_an_adapter_answers_as_its_export_however_it_came_in(server, answers, name, as_lora):
    native, exported = answers(name), answers(as_lora)
    assert native["sums"] == exported["sums"]
    assert [texts for [texts] in native["sums"]] == [[server.text(name, item.prompt)] for item in ITEMS]
    likelihoods = [[float(number) for [[number, _]] in row] for row in native["letters"]]
    assert likelihoods == [
        pytest.approx([float(number) for [[number, _]] in row], abs=1e-3) for row in exported["letters"]
    ]
    assert len(set(map(tuple, likelihoods))) == len(ITEMS)
