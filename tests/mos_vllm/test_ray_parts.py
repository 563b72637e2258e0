"""The parts of the Ray application, without a cluster: arguments, names, the loader, and what is done after a death."""

import asyncio
import inspect
import json
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")
pytest.importorskip("ray.serve.llm", reason="Ray Serve is not installed")
from fastapi import HTTPException
from ray.exceptions import ActorDiedError, RayTaskError
from ray.llm._internal.common.utils import lora_utils
from ray.llm._internal.serve.core.ingress.ingress import OpenAiIngress
from ray.llm._internal.serve.utils.lora_serve_utils import LoraModelLoader
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

import mos
from mos_vllm import ray, ray_ingress, ray_replica
from mos_vllm.ray import Settings, llm_config
from mos_vllm.ray_ingress import ATTEMPTS, AdapterIngress
from mos_vllm.ray_replica import AdapterServer, BucketLoader, EngineGone, FolderLoader
from tests.mos_vllm.make import save_adapter

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def users(tmp_path):
    (tmp_path / "users").mkdir()
    return tmp_path / "users"


def test_arguments_are_text_on_the_command_line_and_typed_in_a_file(users):
    text = {"replicas": "2", "max_loras": "3", "engine": '{"dtype": "float32"}', "device": "CPU"}
    typed = {"replicas": 2, "max_loras": 3, "engine": {"dtype": "float32"}, "device": "CPU"}
    one, other = (Settings(base="hub/name", adapters=str(users), **given) for given in (text, typed))
    assert one == other and one.engine == {"dtype": "float32"}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"adapters": "nowhere"}, "adapters=nowhere is neither a folder nor a bucket"),
        ({"name": "a:b"}, "name=a:b must have no colon"),
        ({"replicas": "0"}, "greater than or equal to 1"),
        ({"replica": "1"}, "not permitted"),
        ({"engine": "{"}, "JSON"),
    ],
)
def test_a_wrong_argument_is_named(users, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        Settings(**{"base": "b", "adapters": str(users)} | given)


def test_folders_are_found_from_anywhere(users, monkeypatch):
    monkeypatch.chdir(users.parent)
    settings = Settings(base="users", adapters="users")
    assert settings.base == settings.adapters == str(users)
    assert Settings(base="hub/name", adapters="gs://bucket/users/").adapters == "gs://bucket/users"


def test_s3_is_refused_without_the_package_that_reads_it(monkeypatch):
    monkeypatch.setattr(ray, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="adapters=s3://bucket/users is read with boto3"):
        Settings(base="b", adapters="s3://bucket/users")
    monkeypatch.setattr(ray, "find_spec", lambda name: name)
    assert Settings(base="b", adapters="s3://bucket/users/").adapters == "s3://bucket/users"


def test_the_arguments_reach_ray_and_vllm(users):
    config = llm_config(Settings(base="hub/name", adapters=str(users), adapters_per_replica=7, replicas=2))
    assert config.model_id == "name" and config.deployment_config["num_replicas"] == 2
    assert config.engine_kwargs["max_cpu_loras"] == config.lora_config.max_num_adapters_per_replica == 7
    assert config.lora_config.dynamic_lora_loading_path is None and config.placement_group_config is None
    scaled = llm_config(Settings(base="b", adapters="gs://b/c", max_replicas=4, device="CPU", engine={"max_loras": 2}))
    assert scaled.lora_config.dynamic_lora_loading_path == "gs://b/c" and scaled.engine_kwargs["max_loras"] == 2
    assert scaled.deployment_config["autoscaling_config"]["max_replicas"] == 4
    assert scaled.placement_group_config == {"bundle_per_worker": {"CPU": 1}}


def load(users, name) -> str:
    config = llm_config(Settings(base="base", adapters=str(users), max_lora_rank=8))
    return asyncio.run(FolderLoader().load_model_from_config(f"base:{name}", config)).local_path


def assert_refused(load, cases):
    """cases: (name, status, beginning of the sentence)"""
    for name, status, sentence in cases:
        with pytest.raises(HTTPException) as raised:
            load(name)
        assert raised.value.status_code == status and raised.value.detail.startswith(sentence)


def test_the_loader_names_folders_and_refuses_with_a_sentence(users):
    save_adapter(users / "ann", target_modules=["q_proj"])
    mos.export_lora(users / "ann", users / "bob")
    assert load(users, "ann") == str(users / "ann") and load(users, "bob") == str(users / "bob")
    save_adapter(users / "wide", target_modules=["q_proj"], r=9)
    (users / "cut").mkdir()
    (users / "cut" / "adapter_config.json").write_text('{"peft_type": "MOS"}', encoding="utf-8")
    cases = (
        ("none", 404, "There is no adapter 'none'."),
        ("../users/ann", 404, "There is no adapter '../users/ann'."),
        ("", 404, "There is no adapter ''."),
        ("wide", 400, "MoS adapter 'wide' is too large: r=9 of"),
        ("cut", 400, "MoS adapter 'cut' has"),
    )
    assert_refused(lambda name: load(users, name), cases)


@pytest.fixture
def bucket(users, monkeypatch):
    """The address of a bucket with the content of `users`, as Ray's file system reads it."""
    address = f"gs://{users.parent.name}"  # of this test alone, since Ray remembers what it has read

    class Files:
        @staticmethod
        def get_file(uri):
            file = users / uri.removeprefix(address + "/")
            return file.read_text(encoding="utf-8") if file.is_file() else None

        @staticmethod
        def download_files(path, bucket_uri, **_):
            shutil.copytree(users / bucket_uri.removeprefix(address + "/"), path, dirs_exist_ok=True)

    monkeypatch.setattr(lora_utils, "CloudFileSystem", Files)
    return address


def test_an_adapter_in_a_bucket_is_copied_to_a_folder_of_the_replica(users, bucket):
    save_adapter(users / "ann", target_modules=["q_proj"])
    config = llm_config(Settings(base="base", adapters=bucket))
    loaders = BucketLoader(), BucketLoader()
    paths = [asyncio.run(loader.load_model_from_config("base:ann", config)).local_path for loader in loaders]
    assert paths[0] != paths[1]
    for path in paths:
        assert (Path(path) / WEIGHTS).read_bytes() == (users / "ann" / WEIGHTS).read_bytes()


def test_the_copies_of_a_killed_replica_are_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    other = tmp_path / "mos-adapters-not-ours"
    other.mkdir()
    killed, alive = BucketLoader(), BucketLoader()
    Path(killed.copies.name, "weights").write_bytes(b"x")
    killed.lock.release()  # as the system does for a process that has ended
    third = BucketLoader()
    assert not Path(killed.copies.name).exists()
    assert other.exists() and Path(alive.copies.name).exists() and Path(third.copies.name).exists()


def test_an_adapter_in_a_bucket_is_refused_with_a_sentence_until_it_is_mended(users, bucket):
    loader, config = BucketLoader(), llm_config(Settings(base="base", adapters=bucket))
    save_adapter(users / "ann", target_modules=["q_proj"])
    whole = (users / "ann" / WEIGHTS).read_bytes()
    (users / "ann" / WEIGHTS).write_bytes(whole[:99])
    cases = (
        ("none", 404, "Unable to find LoRA adapter"),
        ("../users/ann", 404, "There is no adapter '../users/ann'."),
        ("..", 404, "There is no adapter '..'."),
        ("ann", 400, "MoS adapter 'ann' has a broken or truncated"),
        ("ann", 400, "MoS adapter 'ann' has a broken or truncated"),
    )
    assert_refused(lambda name: asyncio.run(loader.load_model_from_config(f"base:{name}", config)), cases)
    (users / "ann" / WEIGHTS).write_bytes(whole)
    assert asyncio.run(loader.load_model_from_config("base:ann", config)).local_path


@pytest.mark.parametrize("loader", [FolderLoader, BucketLoader])
def test_a_replica_has_the_loader_of_its_adapters_and_a_watch_over_its_engine(users, bucket, monkeypatch, loader):
    async def start(self):
        self.engine = SimpleNamespace(_engine_client=SimpleNamespace(errored=False))

    async def started():
        made = AdapterServer.sync_init(llm_config(settings))
        await made.start()
        await asyncio.sleep(0)
        assert not made.watch.done()
        made.engine._engine_client.errored = True
        await made.watch

    found, ended = [], []
    monkeypatch.setattr(LLMServer, "start", start)
    monkeypatch.setattr(LLMServer, "_init_multiplex_loader", lambda self, given: found.append(given))
    monkeypatch.setattr(ray_replica.os, "_exit", ended.append)
    settings = Settings(base="base", adapters=bucket if loader is BucketLoader else str(users))
    asyncio.run(started())
    assert (found, ended) == ([loader], [1])


@pytest.fixture
def ingress():
    return AdapterIngress({"base": None}, {"base": None})


@pytest.mark.parametrize(
    ("asked", "meant"), [("ann", "base:ann"), ("base:ann", "base:ann"), ("base", "base"), (None, "base"), ("", "base:")]
)
def test_bare_names_are_adapters_of_the_base(ingress, asked, meant):
    assert asyncio.run(ingress._get_model_id(asked)) == meant


def test_another_base_is_a_404(ingress):
    with pytest.raises(HTTPException, match="404"):
        asyncio.run(ingress._get_model_id("other:ann"))


def test_a_refusal_has_the_form_of_openais_errors(ingress):
    response = asyncio.run(ingress._process_llm_request(Body(model="other:ann"), call_method="completions"))
    error = json.loads(response.body)["error"]
    assert (response.status_code, error["code"]) == (404, 404)
    assert error["message"].startswith('Got request for model "other:ann".')


class Body(SimpleNamespace):
    def model_copy(self, update):
        return Body(**vars(self) | update)


@pytest.fixture
def replicas(monkeypatch):
    """Replicas that do, one request after the other, what is in the list: parts of an answer, or an error."""
    acts, seen = [], []

    async def respond(self, *, body, **options):
        seen.append((body.model, list(self.suspects.running)))
        for part in acts.pop(0):
            if isinstance(part, Exception):
                raise part
            yield part

    monkeypatch.setattr(OpenAiIngress, "_get_response", respond)
    monkeypatch.setattr(ray_ingress, "PAUSE", 0)
    return acts, seen


async def answer(ingress, model="ann"):
    return [part async for part in ingress._get_response(body=Body(model=model), call_method="completions")]


DEATHS = [ActorDiedError(), EngineDeadError()]


@pytest.mark.parametrize("deaths", [1, 2])
@pytest.mark.parametrize("death", DEATHS)
def test_a_request_outlives_the_replica_that_had_it(ingress, replicas, death, deaths):
    acts, seen = replicas
    acts += [[death]] * deaths + [["text"]]
    assert asyncio.run(answer(ingress)) == ["text"]
    assert seen == [("base:ann", [number] * (number > 0)) for number in range(deaths + 1)]
    assert not ingress.suspects.running


def test_a_request_that_kills_engines_is_refused(ingress, replicas):
    acts, seen = replicas
    acts += [[death] for death in [*DEATHS, *DEATHS]]
    with pytest.raises(HTTPException, match="3 engines have died with this request in them") as raised:
        asyncio.run(answer(ingress))
    assert raised.value.status_code == 400  # clients repeat a 500
    assert len(seen) == ATTEMPTS and not ingress.suspects.running


def test_an_engine_that_had_died_before_does_not_count(ingress, replicas):
    acts, _ = replicas
    gone = RayTaskError("f", "Traceback ...", EngineGone()).as_instanceof_cause()
    acts += [[gone], [ActorDiedError()], [gone], [EngineDeadError()], [gone], [gone], ["text"]]
    assert asyncio.run(answer(ingress)) == ["text"]
    assert not acts and not ingress.suspects.running


def test_a_last_attempt_is_with_no_other_suspect_and_second_ones_run_together(ingress, monkeypatch):
    """Two requests kill the one engine before it can answer the three others; the engine that follows does the same."""
    engine, seen = [], []

    async def respond(self, *, body, **options):
        seen.append(sorted(self.suspects.running))
        died = engine[-1]
        if body.model.startswith("base:deadly"):
            await asyncio.sleep(0.01)
            engine.append(asyncio.Event())
            died.set()
        with suppress(TimeoutError):
            await asyncio.wait_for(died.wait(), 0.1)
            raise EngineDeadError
        yield body.model

    async def together():
        engine.append(asyncio.Event())
        names = ("a", "deadly-1", "b", "deadly-2", "c")
        return await asyncio.gather(*(answer(ingress, name) for name in names), return_exceptions=True)

    monkeypatch.setattr(OpenAiIngress, "_get_response", respond)
    monkeypatch.setattr(ray_ingress, "PAUSE", 0)
    answers = asyncio.run(together())
    assert [given for given in answers if isinstance(given, list)] == [["base:a"], ["base:b"], ["base:c"]]
    assert [answers[1].status_code, answers[3].status_code] == [400, 400]
    assert seen == [[]] * 5 + [[1] * number for number in range(1, 6)] + [[2]] * 5


def test_a_stream_that_has_begun_is_not_begun_again(ingress, replicas):
    acts, seen = replicas
    acts += [["half", ActorDiedError()]]
    with pytest.raises(ActorDiedError):
        asyncio.run(answer(ingress))
    assert len(seen) == 1


def test_what_a_replica_refuses_is_not_tried_again_and_has_no_traceback(ingress, replicas):
    acts, seen = replicas
    cause = HTTPException(400, "MoS adapter 'ann' is too large.")
    acts += [[RayTaskError("f", "Traceback ...", cause).as_instanceof_cause()]]
    with pytest.raises(HTTPException) as raised:
        asyncio.run(answer(ingress))
    assert (raised.value.status_code, raised.value.detail) == (400, "MoS adapter 'ann' is too large.")
    assert not isinstance(raised.value, RayTaskError) and len(seen) == 1


def test_an_error_of_the_engine_is_passed_on(ingress, replicas):
    acts, seen = replicas
    acts += [[RayTaskError("f", "Traceback ...", KeyError("x")).as_instanceof_cause()]]
    with pytest.raises(KeyError):
        asyncio.run(answer(ingress))
    assert len(seen) == 1


def server(errored: bool = False) -> AdapterServer:
    made = AdapterServer.__new__(AdapterServer)
    made.loading = ray_replica.WeakValueDictionary()
    made.engine = SimpleNamespace(_engine_client=SimpleNamespace(errored=errored))
    return made


def test_a_replica_says_that_its_engine_had_died_before():
    with pytest.raises(EngineGone):
        asyncio.run(server(errored=True)._maybe_resolve_lora_from_multiplex())


def test_first_requests_for_one_adapter_load_it_one_after_the_other(monkeypatch):
    at_once, loads = set(), []

    async def resolve(self):
        name = ray_replica.serve.get_multiplexed_model_id()
        assert name not in at_once
        at_once.add(name)
        await asyncio.sleep(0)
        at_once.discard(name)
        loads.append(name)

    async def ask(made, name):
        ray_replica.serve.context._serve_request_context.set(SimpleNamespace(multiplexed_model_id=name))
        await made._maybe_resolve_lora_from_multiplex()

    async def together():
        made = server()
        await asyncio.gather(*(ask(made, name) for name in ("base:a", "base:a", "base:b", "")))
        return made.loading

    monkeypatch.setattr(LLMServer, "_maybe_resolve_lora_from_multiplex", resolve)
    monkeypatch.setattr(
        ray_replica.serve,
        "get_multiplexed_model_id",
        lambda: ray_replica.serve.context._serve_request_context.get().multiplexed_model_id,
    )
    assert len(asyncio.run(together())) == 0  # no lock is kept
    assert sorted(loads) == ["base:a", "base:a", "base:b"]


def test_what_vllm_refuses_is_a_400(monkeypatch):
    async def refuse(self):
        raise ValueError("Failed to load lora model: MoS adapter 'a' does not fit the model.")

    monkeypatch.setattr(LLMServer, "_maybe_resolve_lora_from_multiplex", refuse)
    monkeypatch.setattr(ray_replica.serve, "get_multiplexed_model_id", lambda: "base:a")
    with pytest.raises(HTTPException, match="400: Failed to load lora model: MoS adapter 'a' does not fit"):
        asyncio.run(server()._maybe_resolve_lora_from_multiplex())


def test_ray_still_has_what_is_used():
    """The hooks that are overridden are called by Ray under these names (docs/upgrading.md)."""
    assert "_process_llm_request" in OpenAiIngress.completions.__code__.co_names
    assert "_process_llm_request" in OpenAiIngress.chat.__code__.co_names
    assert "_init_multiplex_loader" in LLMServer._init_shared.__code__.co_names
    assert "start" in LLMServer.__init__.__code__.co_names
    assert {"lora_root", "download_timeout_s", "max_tries"} <= inspect.signature(LoraModelLoader).parameters.keys()
    assert list(inspect.signature(OpenAiIngress).parameters)[:3] == ["llm_deployments", "model_cards", "lora_paths"]
    assert isinstance(AsyncLLM.errored, property)
    assert "_get_response" in OpenAiIngress._process_llm_request.__code__.co_names
    assert "_get_model_id" in OpenAiIngress._get_response.__code__.co_names
    assert "_maybe_resolve_lora_from_multiplex" in LLMServer._run_request.__code__.co_names
    assert "load_model_from_config" in LoraModelLoader.__dict__
    assert {"experimental_configs", "lora_config", "server_cls"} <= LLMConfig.model_fields.keys()
