"""Two replicas of a tiny model in Ray Serve LLM, asked by the real OpenAI client while parts of it are killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import mos
from tests.mos_vllm.make import save_adapter, tiny_llama
from tests.mos_vllm.running import free_port, ready

pytestmark = pytest.mark.slow
pytest.importorskip("vllm", reason="vLLM is not installed")
pytest.importorskip("ray.serve.llm", reason="Ray Serve is not installed")
openai = pytest.importorskip("openai", reason="the OpenAI client is not installed")

ROOT = Path(__file__).resolve().parents[2]
PROMPT = [5, 17, 33, 80, 41]
DEADLY = [190]  # a token that the tokenizer has, but not the model, even with its 96 rows padded to 128 by vLLM
ADAPTERS = 4
CROWD = int(os.environ.get("MOS_TEST_CROWD", 40))  # adapters of the test of routing


def make(work: Path) -> None:
    """A base of 96 tokens whose tokenizer has 200; adapters, their exports, many copies, and a broken one."""
    tiny_llama().save_pretrained(work / "base")
    words = Tokenizer(models.WordLevel({f"w{i} ": i for i in range(200)}, unk_token="w0 "))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0 ").save_pretrained(work / "base")
    users = work / "users"
    for number in range(ADAPTERS):
        folder = save_adapter(users / f"mos-{number}", seed=number)
        mos.export_lora(folder, users / f"lora-{number}")
    for number in range(CROWD):
        shutil.copytree(users / f"mos-{number % ADAPTERS}", users / f"crowd-{number}")
    broken = shutil.copytree(users / "mos-0", users / "broken")
    (broken / "adapter_model.safetensors").write_bytes(b"x")
    save_adapter(users / "wide", model=tiny_llama(intermediate_size=128))


class Cluster:
    """`serve run` of the application, in a cluster of its own on the loopback."""

    def __init__(self, work: Path, environment: dict[str, str], **arguments) -> None:
        port = free_port()
        self.home = Path(tempfile.mkdtemp(prefix="ray"))  # short: it holds sockets
        engine = {"dtype": "float32", "max_model_len": 128, "max_num_seqs": 16, "enforce_eager": True}
        settings = {"base": str(work / "base"), "adapters": str(work / "users"), "device": "CPU", "max_loras": 2}
        application = {"import_path": "mos_vllm.ray:app", "args": settings | {"engine": engine} | arguments}
        config = {"http_options": {"host": "127.0.0.1", "port": port}, "applications": [application]}
        (self.home / "app.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
        command = [str(Path(sys.executable).parent / "serve"), "run", "--address", "local", str(self.home / "app.yaml")]
        own = {
            "RAY_TMPDIR": str(self.home),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
            "RAY_worker_niceness": "0",
        }
        self.log = self.home / "serve.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=environment | own, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=ROOT
            )
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="-", timeout=240, max_retries=0)

    def text(self, model: str, prompt=PROMPT, tokens: int = 12) -> str:
        answer = self.client.completions.create(model=model, prompt=prompt, temperature=0, max_tokens=tokens)
        return answer.choices[0].text

    def wait(self, replicas: int) -> None:
        """Until so many replicas have a worker, and the base model answers."""
        limit = time.monotonic() + 480
        while time.monotonic() < limit and self.process.poll() is None:
            try:
                if len(self.pids("VLLM::Worker")) == replicas and self.text("base"):
                    return
            except openai.OpenAIError:
                pass
            time.sleep(1)
        raise RuntimeError(self.log.read_text(encoding="utf-8", errors="replace")[-6000:])

    def pids(self, title: str = "") -> list[int]:
        """Processes of this cluster with `title` in their command line. Ray gives them groups, but no sessions."""
        command = ["ps", "-wwo", "pid=,stat=,args=", "--sid", str(self.process.pid)]
        listed = subprocess.run(command, capture_output=True, text=True).stdout
        rows = [line.split(maxsplit=2) for line in listed.splitlines()]
        return [int(pid) for pid, state, *args in rows if title in "".join(args) and state[0] != "Z"]

    def loads(self) -> list[str]:
        """The adapters that came to a replica, one entry for each replica that one came to.

        They are in what replicas write to stderr: the start of vLLM closes the files of Ray Serve's logger.
        """
        logs = self.home.glob("**/session_2*/logs/worker-*.err")
        lines = [line for log in logs for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
        return [line.split("Adapter ")[1].split()[0] for line in lines if "comes to this replica" in line]

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.home, ignore_errors=True)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    work = tmp_path_factory.mktemp("ray")
    make(work)
    return work


@pytest.fixture(scope="module")
def cluster(work, plugin_environment):
    with ready(Cluster(work, plugin_environment, replicas=2), 2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def exported(cluster):
    """The text of each exported adapter, served as LoRA."""
    texts = [cluster.text(f"lora-{number}") for number in range(ADAPTERS)]
    assert len(set(texts)) == ADAPTERS
    return texts


def test_an_adapter_has_two_names_and_the_text_of_its_export(cluster, exported):
    for number, text in enumerate(exported):
        assert cluster.text(f"mos-{number}") == cluster.text(f"base:mos-{number}") == text
    assert cluster.text("base") not in exported
    assert [model.id for model in cluster.client.models.list()] == ["base"]


def test_streams(cluster, exported):
    options = {"prompt": PROMPT, "temperature": 0, "max_tokens": 12, "stream": True}
    parts = [chunk.choices[0].text for chunk in cluster.client.completions.create(model="mos-1", **options)]
    assert len(parts) > 1 and "".join(parts) == exported[1]


def test_many_first_requests_at_once(cluster, work, exported):
    shutil.copytree(work / "users/mos-2", work / "users/twice")
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(cluster.text, ["twice", "base:twice"] * 4)) == {exported[2]}


@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        ("none", openai.NotFoundError, "There is no adapter 'none'"),
        ("../users/mos-1", openai.NotFoundError, "There is no adapter"),
        ("other:mos-1", openai.NotFoundError, 'Could not find base model with ID "other"'),
        ("broken", openai.BadRequestError, "MoS adapter 'broken' has a broken or truncated"),
        ("wide", openai.BadRequestError, "does not fit the model"),
    ],
)
def test_what_cannot_be_served_is_a_4xx_with_a_sentence(cluster, exported, name, error, sentence):
    for _ in range(2):
        with pytest.raises(error, match=sentence) as raised:
            cluster.text(name)
        assert "Traceback" not in str(raised.value)
    assert cluster.text("mos-1") == exported[1]


def test_warm_requests_go_where_their_adapter_is(cluster, exported):
    """Each adapter once, then by Zipf's law. A replica has room for all, so that a request that goes astray is a load.

    MOS_TEST_CROWD=1000 takes some minutes.
    """
    before = len(cluster.loads())
    weights = [1 / rank for rank in range(1, CROWD + 1)]
    warm = random.Random(0).choices(range(CROWD), weights, k=10 * min(CROWD, 250))
    asked = [*range(CROWD), *warm]
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda number: cluster.text(f"crowd-{number}"), asked))
    assert texts == [exported[number % ADAPTERS] for number in asked]
    loads = len(cluster.loads()) - before
    assert loads >= CROWD  # or the logs were not found
    local = 1 - (loads - CROWD) / len(warm)
    print(f"{len(warm)} warm requests for {CROWD} adapters: {loads} loads, {local:.3f} of the requests were local")
    assert local >= 0.9


@pytest.mark.parametrize("title", ["ray::ServeReplica:default:AdapterServer", "VLLM::EngineCore", "VLLM::Worker"])
def test_a_kill_under_load_loses_no_request(cluster, exported, title):
    cluster.wait(2)
    asked = [number % ADAPTERS for number in range(150)]
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(cluster.text, f"mos-{number}") for number in asked]
        answers[30].result()
        victims = cluster.pids(title)
        os.kill(victims[0], signal.SIGKILL)
        assert len(victims) == 2
        assert [answer.result() for answer in answers] == [exported[number] for number in asked]


def test_a_request_that_kills_engines_is_refused_and_the_others_are_answered(cluster, exported):
    cluster.wait(2)
    with ThreadPoolExecutor(4) as pool:
        deadly = pool.submit(cluster.text, "mos-0", DEADLY)
        others = [pool.submit(cluster.text, f"mos-{number % ADAPTERS}") for number in range(30)]
        with pytest.raises(openai.BadRequestError, match="engines have died with this request"):
            deadly.result()
        assert [answer.result() for answer in others] == [exported[number % ADAPTERS] for number in range(30)]
    cluster.wait(2)


def test_a_second_replica_comes_when_there_are_more_requests(work, plugin_environment):
    with ready(Cluster(work, plugin_environment, max_replicas=2, requests_per_replica=2), 1) as cluster:
        expected = cluster.text("mos-1", tokens=100)
        limit = time.monotonic() + 200
        with ThreadPoolExecutor(8) as pool:
            while len(cluster.pids("VLLM::Worker")) < 2 and time.monotonic() < limit:
                assert set(pool.map(lambda _: cluster.text("mos-1", tokens=100), range(16))) == {expected}
        cluster.wait(2)
        assert cluster.text("mos-1", tokens=100) == expected
