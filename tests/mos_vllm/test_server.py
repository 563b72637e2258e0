"""`vllm serve` with nothing but its own options, asked by the real OpenAI client over the loopback."""

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import mos
from mos_vllm.pack import pack
from tests.mos_vllm.make import save_adapter, tiny_llama
from tests.mos_vllm.running import end_group, free_port, ready
from tests.mos_vllm.test_reading import DAMAGE

pytestmark = pytest.mark.slow
pytest.importorskip("vllm", reason="vLLM is not installed")
openai = pytest.importorskip("openai", reason="the OpenAI client is not installed")

PROMPT = [5, 17, 33, 80, 41]
ADAPTERS = 7


def make_adapters(work: Path) -> None:
    """A base with a tokenizer of 96 words; MoS adapters and their exports in `named`, and broken ones in `bad`."""
    tiny_llama().save_pretrained(work / "base")
    words = Tokenizer(models.WordLevel({f"w{i} ": i for i in range(96)}, unk_token="w0 "))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0 ").save_pretrained(work / "base")
    for number in range(ADAPTERS):
        partial = {"target_modules": ["v_proj", "down_proj"], "r": 4} if number % 3 == 2 else {}
        folder = save_adapter(work / "named" / f"mos-{number}", seed=number, **partial)
        mos.export_lora(folder, work / "exported" / f"lora-{number}")
    pack(work / "named" / "mos-1")


def make_bad(work: Path) -> dict[str, str]:
    """Folders of bad adapters by name, and what is said of each."""
    said = {}

    def bad(name, sentence):
        said[name] = sentence
        return shutil.copytree(work / "named" / "mos-0", work / "bad" / name)

    for name, (change, sentence) in DAMAGE.items():
        weights = bad(name, sentence) / "adapter_model.safetensors"
        tensors = {key: value.clone() for key, value in load_file(weights).items()}
        change(tensors)
        save_file(tensors, weights, metadata={"format": "pt"})
    for part in (0, 7, 100, 5000, 50_000):
        weights = bad(f"cut at {part}", "broken or truncated") / "adapter_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:part])
    configs = {
        "{": "is not JSON", "[]": "is not a JSON object", "\0": "is not JSON",
        '{"peft_type": "MOS"}': "alpha=None", '{"peft_type": "MOS", "alpha": NaN}': "alpha=nan",
        '{"peft_type": "MOS", "alpha": 1, "bias": "all"}': "bias='all'",
        '{"peft_type": "MOS", "alpha": 1, "modules_to_save": ["x"]}': "modules_to_save",
    }  # fmt: skip
    for number, (text, sentence) in enumerate(configs.items()):
        (bad(f"config {number}", sentence) / "adapter_config.json").write_text(text, encoding="utf-8")
    (bad("pickle", "safetensors only") / "adapter_model.safetensors").rename(work / "bad/pickle/adapter_model.bin")
    for name in ("adapter_config.json", "adapter_model.safetensors"):  # reading a pipe would wait for ever
        place = bad(f"pipe {name}", f"in place of {name}") / name
        place.unlink()
        os.mkfifo(place)
    circle = bad("circle", "cannot be read") / "adapter_config.json"
    circle.unlink()
    circle.symlink_to(circle)
    for name, sentence, model in (
        ("wide", "features", tiny_llama(intermediate_size=128)),
        ("deep", "has no layer", tiny_llama(num_hidden_layers=9)),
    ):
        said[name] = sentence
        save_adapter(work / "bad" / name, model=model)
    for name, sentence, settings in (
        ("high rank", "r=20", {"r": 20, "equivalent_rank": 4}),
        ("large pools", "equivalent rank=20", {"r": 4, "equivalent_rank": 20}),
    ):
        said[name] = sentence
        save_adapter(work / "bad" / name, **settings)
    return said


BAD_NAMES = [
    *("../named/mos-1", "./mos-1", "mos-1/", "mos-1/.", "mos-1/../mos-2", "named/mos-1", "..\\mos-1", "mos-1\0"),
    *("..", ".", "~", "/etc", "%2e%2e", "a" * 300, "none", "MOS-1"),
]


class Server:
    def __init__(self, work: Path, environment: dict[str, str]) -> None:
        port = free_port()
        self.url, self.log, self.work = f"http://127.0.0.1:{port}", work / "server.log", work
        flags = {
            "served-model-name": "base",
            "host": "127.0.0.1",
            "port": port,
            "dtype": "float32",
            "max-model-len": 128,
            "max-num-seqs": 16,
            "block-size": 32,  # so that prompts have whole blocks, which the prefix cache keeps
            "num-gpu-blocks-override": 256,  # memory that is soon all touched, so that a soak sees what grows
            "max-loras": 2,
            "max-cpu-loras": 4,
            "max-lora-rank": 16,
            "additional-config": json.dumps({"mos": {"device_store_gib": 0.0002}}),
            "generation-config": "vllm",
        }
        command = [str(Path(sys.executable).parent / "vllm"), "serve", str(work / "base"), "--enforce-eager"]
        command += [part for flag, value in flags.items() for part in (f"--{flag}", str(value))]
        modules = [f"static={work / 'named/mos-0'}", f"static-lora={work / 'exported/lora-1'}"]
        command += ["--enable-lora", "--lora-modules", *modules]
        own = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_LORA_RESOLVER_CACHE_DIR": str(work / "named")}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=environment | own, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.client = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", timeout=60, max_retries=0)

    def wait(self) -> None:
        limit = time.monotonic() + 240
        while time.monotonic() < limit and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5)
                return
            except OSError:
                time.sleep(0.5)
        raise RuntimeError(self.log.read_text(encoding="utf-8", errors="replace")[-4000:])

    def stop(self) -> None:
        end_group(self.process, 30)

    def text(self, model: str, prompt=PROMPT, **options) -> str:
        return self.answer(model, prompt, **options).choices[0].text

    def answer(self, model: str, prompt=PROMPT, **options):
        greedy = {"temperature": 0, "max_tokens": 12}
        return self.client.completions.create(model=model, prompt=prompt, **greedy | options)

    def post(self, path: str, **body) -> tuple[int, str]:
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def load(self, name: str, folder: Path, **options) -> tuple[int, str]:
        return self.post("/v1/load_lora_adapter", lora_name=name, lora_path=str(folder), **options)

    def metrics(self, prefix="mos:") -> dict[str, float]:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as response:
            lines = response.read().decode().splitlines()
        return {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(prefix)}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    work = tmp_path_factory.mktemp("server")
    make_adapters(work)
    return work


@pytest.fixture(scope="module")
def server(work, plugin_environment):
    with ready(Server(work, plugin_environment)) as server:
        yield server


@pytest.fixture(scope="module")
def exported(server, work):
    """The text of each exported adapter, served as LoRA."""
    texts = []
    for number in range(ADAPTERS):
        assert server.load(f"lora-{number}", work / "exported" / f"lora-{number}")[0] == 200
        texts.append(server.text(f"lora-{number}"))
    assert len(set(texts)) == ADAPTERS
    return texts


def test_static_dynamic_and_named_adapters_give_the_text_of_the_exported_ones(server, work, exported):
    assert server.text("static") == exported[0]
    assert server.text("static-lora") == exported[1]
    assert server.load("dynamic", work / "named/mos-2")[0] == 200
    assert server.text("dynamic") == exported[2]
    for _ in range(2):  # more than fit into slots and host, so that they change hands
        assert [server.text(f"mos-{number}") for number in range(ADAPTERS)] == exported


def test_many_clients_at_once_with_mos_lora_and_the_base_model(server, exported):
    base = server.text("base")
    names = [f"{kind}-{number}" for number in range(ADAPTERS) for kind in ("mos", "lora")] + ["base"]
    wanted = [text for text in exported for _ in range(2)] + [base]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(server.text, names * 4)) == wanted * 4


def test_streams_and_samples(server, exported):
    parts = [chunk.choices[0].text for chunk in server.answer("mos-3", stream=True)]
    assert len(parts) > 1 and "".join(parts) == exported[3]
    native, as_lora = (
        [choice.text for choice in server.answer(name, n=3, temperature=0.8, seed=7).choices]
        for name in ("mos-3", "lora-3")
    )
    assert native == as_lora and len(set(native)) > 1


def test_two_first_requests_at_once(server, work, exported):
    shutil.copytree(work / "named/mos-4", work / "named/twice")
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(server.text, ["twice"] * 8)) == {exported[4]}


def test_a_reload_in_place_answers_with_the_new_weights_also_for_cached_prefixes(server, work, exported):
    prompt = PROMPT * 8  # more than a block of the prefix cache
    live = shutil.copytree(work / "named/mos-0", work / "live")
    assert server.load("live", live)[0] == 200
    assert server.text("live", prompt) == server.text("lora-0", prompt)
    before = server.metrics("vllm:prefix_cache_hits_total")
    assert server.text("live", prompt) == server.text("lora-0", prompt)
    assert server.metrics("vllm:prefix_cache_hits_total")["vllm:prefix_cache_hits_total"] >= sum(before.values()) + 64
    shutil.copytree(work / "named/mos-5", live, dirs_exist_ok=True)
    assert server.load("live", live, load_inplace=True)[0] == 200
    assert server.text("live", prompt) == server.text("lora-5", prompt) != server.text("lora-0", prompt)
    shutil.copytree(work / "named/mos-6", live, dirs_exist_ok=True)
    assert server.post("/v1/unload_lora_adapter", lora_name="live")[0] == 200
    with pytest.raises(openai.NotFoundError):
        server.text("live")
    assert server.load("live", live)[0] == 200
    assert server.text("live", prompt) == server.text("lora-6", prompt)


def replace_weights(folder, other):
    """Whole or not at all: a request that sees half a file is refused."""
    shutil.copy(other / "adapter_model.safetensors", folder / "new")
    (folder / "new").replace(folder / "adapter_model.safetensors")


def test_an_adapter_that_is_loaded_again_answers_with_the_new_weights_while_earlier_requests_run(
    server, work, exported
):
    """vLLM's own prefix cache goes by name and folder, and an earlier request may cache its prompt at any time."""
    prompt = PROMPT * 8  # more than a block of the prefix cache
    long = {"max_tokens": 80, "extra_body": {"ignore_eos": True}}
    again = shutil.copytree(work / "named/mos-0", work / "again")
    assert server.load("again", again)[0] == 200
    running = [server.answer("again", prompt, stream=True, **long) for _ in range(3)]
    parts = [next(each).choices[0].text for each in running]
    assert server.post("/v1/unload_lora_adapter", lora_name="again")[0] == 200
    replace_weights(again, work / "named/mos-1")
    assert server.load("again", again)[0] == 200
    with ThreadPoolExecutor(4) as pool:
        texts = [pool.submit(server.text, "again", prompt) for _ in range(8)]
        for first, rest in zip(parts, running, strict=True):
            assert first + "".join(each.choices[0].text for each in rest) == server.text("lora-0", prompt, **long)
        assert {each.result() for each in texts} == {server.text("lora-1", prompt)}
    assert server.text("again", prompt) == server.text("lora-1", prompt) != server.text("lora-0", prompt)


def test_files_that_change_are_read_by_the_next_request_and_broken_ones_are_not(server, work, exported):
    prompt = PROMPT * 8
    changing = shutil.copytree(work / "named/mos-0", work / "changing")
    assert server.load("changing", changing)[0] == 200
    assert server.text("changing", prompt) == server.text("lora-0", prompt)
    replace_weights(changing, work / "named/mos-1")
    assert server.text("changing", prompt) == server.text("lora-1", prompt)
    (changing / "adapter_model.safetensors").write_bytes(b"x")
    assert server.text("changing", prompt) == server.text("lora-1", prompt)  # from memory
    replace_weights(changing, work / "named/mos-3")
    assert server.text("changing", prompt) == server.text("lora-3", prompt)


def test_a_reload_under_load_answers_every_request(server, work, exported):
    busy = shutil.copytree(work / "named/mos-1", work / "busy")
    assert server.load("busy", busy)[0] == 200
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(server.text, "busy") for _ in range(40)]
        for _ in range(3):
            shutil.copy(work / "named/mos-1/adapter_model.safetensors", busy)
            assert server.load("busy", busy, load_inplace=True)[0] == 200
        assert {answer.result() for answer in answers} == {exported[1]}


def test_fifty_bad_adapters_and_names_each_give_their_sentence(server, work, exported):
    said = make_bad(work)
    assert len(said) + len(BAD_NAMES) >= 50
    for name, sentence in said.items():
        status, body = server.load(f"bad {name}", work / "bad" / name)
        assert status == 400, (name, body)
        message = json.loads(body)["error"]["message"]
        assert message.startswith(f"MoS adapter 'bad {name}' ") and sentence in message, (name, message)
    assert server.load("missing", work / "missing")[0] == 404
    for path in ("\0", "a" * 5000):
        status, body = server.load("no path", path)
        assert status == 400 and "MoS adapter 'no path' cannot be read" in json.loads(body)["error"]["message"]
    for name in BAD_NAMES:
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            server.text(name)
    assert server.text("mos-1") == exported[1]  # the server goes on


def test_a_bad_sub_folder_is_a_400_with_a_sentence(server, work):
    broken = shutil.copytree(work / "named/mos-0", work / "named/broken")
    (broken / "adapter_model.safetensors").write_bytes(b"x")
    with pytest.raises(openai.BadRequestError, match="MoS adapter 'broken' has a broken or truncated"):
        server.text("broken")


def test_metrics_show_what_is_held(server, exported):
    before = server.metrics()
    for number in range(ADAPTERS):
        server.text(f"mos-{number}")
    after = server.metrics()
    assert after["mos:activations"] > before["mos:activations"] and after["mos:loads"] > before["mos:loads"]
    assert after["mos:misses"] > 0 and after["mos:activation_seconds"] > 0 and after["mos:load_seconds"] > 0
    assert 1 <= after["mos:adapters_on_host"] <= 4 and 1 <= after["mos:adapters_on_device"] <= 3
    assert after["mos:bytes_on_host"] > after["mos:adapters_on_host"] * 20_000


def test_the_log_says_how_many_adapters_fit(server):
    log = server.log.read_text(encoding="utf-8", errors="replace")
    assert "MoS adapters on all 7 layer types take" in log and "max_cpu_loras=4; 2 are active at a time" in log
    assert "Traceback" not in log.split("Application startup complete")[0]
