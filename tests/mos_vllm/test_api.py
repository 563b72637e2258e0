"""vLLM's own handler of adapters with the plugin's wrapping, on an engine that only records."""

import asyncio
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

pytest.importorskip("vllm", reason="vLLM is not installed")
from vllm.entrypoints.openai.models.protocol import BaseModelPath
from vllm.entrypoints.openai.models.serving import ErrorResponse, OpenAIServingModels
from vllm.entrypoints.serve.engine.serving import BaseServing
from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest, UnloadLoRAAdapterRequest
from vllm.exceptions import LoRAAdapterNotFoundError
from vllm.lora.request import LoRARequest
from vllm.v1.core import kv_cache_utils

import mos
from mos_vllm import api, prefixes
from mos_vllm.api import inspect, leaves
from mos_vllm.api import named_folder as found_folder
from mos_vllm.reading import stamp
from tests.mos_vllm.make import save_adapter

ROOT_VARIABLE = "VLLM_LORA_RESOLVER_CACHE_DIR"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    save_adapter(root / "mos", target_modules=["q_proj"])
    mos.export_lora(root / "mos", root / "lora")
    return root


@pytest.fixture
def root(saved, tmp_path, monkeypatch):
    """The folder of adapters that names are looked up in: one MoS, one LoRA, one broken."""
    folder = shutil.copytree(saved, tmp_path / "root")
    (folder / "broken").mkdir()
    (folder / "broken" / "adapter_config.json").write_text("{", encoding="utf-8")
    monkeypatch.setenv(ROOT_VARIABLE, str(folder))
    return folder


class Engine:
    def __init__(self):
        self.model_config = SimpleNamespace(model="base", max_model_len=1)
        self.renderer = self.input_processor = None
        self.vllm_config = SimpleNamespace(lora_config=SimpleNamespace(max_lora_rank=16))
        self.added, self.numbers, self.error, self.resident = [], [], None, set()

    async def add_lora(self, request):
        await asyncio.sleep(0.01)
        if self.error:
            raise self.error
        self.added.append((request.lora_name, request.lora_path, request.load_inplace))
        self.numbers.append(request.lora_int_id)

    async def list_loras(self):
        return set(self.resident)


@pytest.fixture
def models(monkeypatch):
    for name in ("load_lora_adapter", "resolve_lora"):
        method = getattr(OpenAIServingModels, name)
        monkeypatch.setattr(OpenAIServingModels, name, getattr(method, "__wrapped__", method))
    method = BaseServing._check_model
    monkeypatch.setattr(BaseServing, "_check_model", getattr(method, "__wrapped__", method))
    keys = kv_cache_utils._gen_lora_extra_hash_keys
    monkeypatch.setattr(kv_cache_utils, "_gen_lora_extra_hash_keys", getattr(keys, "__wrapped__", keys))
    api.install()
    prefixes.install()
    return OpenAIServingModels(Engine(), [BaseModelPath("base", "base")])


def load(models, name, path, inplace=False):
    request = LoadLoRAAdapterRequest(lora_name=name, lora_path=str(path), load_inplace=inplace)
    return asyncio.run(models.load_lora_adapter(request))


def test_a_mos_adapter_is_loaded(models, root):
    assert "Success" in load(models, "a", root / "mos")
    assert models.engine_client.added == [("a", str(root / "mos"), False)]
    assert models.lora_requests["a"].lora_int_id == 1


@pytest.mark.parametrize(("max_rank", "said"), [(4, "r=8"), (16, None)])
def test_a_too_large_adapter_is_a_400_and_never_reaches_the_engine(models, root, max_rank, said):
    models.engine_client.vllm_config.lora_config.max_lora_rank = max_rank
    response = load(models, "a", root / "mos")
    assert isinstance(response, ErrorResponse) == bool(said)
    if said:
        assert response.error.code == 400 and said in response.error.message
        assert not models.engine_client.added and "a" not in models.lora_requests


@pytest.mark.parametrize(
    "wrapped",
    [
        "Call to add_lora method failed: {}",
        "Call ... Worker failed with error '{}', please check the stack trace above",
    ],
)
def test_what_only_the_engine_can_tell_is_a_400_with_the_sentence_alone(models, root, wrapped):
    sentence = f"MoS adapter '{root / 'mos'}' does not fit the model: it's too wide."
    models.engine_client.error = Exception(wrapped.format(sentence))
    response = load(models, "a", root / "mos")
    assert response.error.code == 400
    assert response.error.message == "MoS adapter 'a' does not fit the model: it's too wide."


def test_other_errors_stay_as_vllm_gives_them(models, root, tmp_path):
    models.engine_client.error = Exception("out of memory")
    assert load(models, "a", root / "mos").error.code == 500
    assert load(models, "a", root / "lora").error.code == 500
    models.engine_client.error = LoRAAdapterNotFoundError("a", str(tmp_path / "none"))
    assert load(models, "a", tmp_path / "none").error.code == 404


def test_a_server_without_lora_answers_as_vllm_does(models, root):
    models.engine_client.vllm_config.lora_config = None
    models.engine_client.error = RuntimeError("LoRA is not enabled.")
    assert "not enabled" in load(models, "a", root / "mos").error.message


@pytest.mark.parametrize("path", ["lora", "mos", "someone/on-a-hub"])
def test_no_request_asks_for_a_load_in_place_again(models, root, path):
    """The engine would read the adapter in every step, or ask a hub for it."""
    assert "Success" in load(models, "a", root / path if path in ("lora", "mos") else path, inplace=True)
    assert models.engine_client.added[-1][2] is True and models.lora_requests["a"].load_inplace is False


def test_what_is_loaded_no_more_is_not_all_kept(models, root, monkeypatch):
    monkeypatch.setattr(api, "UNLOADED", 5)
    load(models, "stays", root / "mos")
    for number in range(25):
        load(models, f"goes {number}", root / "mos")
        del models.lora_requests[f"goes {number}"]
        assert len(models.mos_notes) <= 2 + 5
    assert 1 in models.mos_notes


def test_a_reload_in_place_is_asked_for_once_and_has_prefixes_of_its_own(models, root):
    load(models, "a", root / "mos")
    earlier = block_keys(models.lora_requests["a"])
    assert "already been loaded" in load(models, "a", root / "mos").error.message
    assert block_keys(models.lora_requests["a"]) == earlier
    assert "Success" in load(models, "a", root / "mos", inplace=True)
    assert models.engine_client.added[-1][2] is True and models.lora_requests["a"].load_inplace is False
    assert block_keys(models.lora_requests["a"]) != earlier


def test_a_reload_in_place_that_fails_leaves_the_earlier_weights(models, root):
    load(models, "a", root / "mos")
    earlier = models.lora_requests["a"]
    models.engine_client.error = Exception("out of memory")
    assert load(models, "a", root / "mos", inplace=True).error.code == 500
    assert models.lora_requests["a"] is earlier


def test_an_adapter_that_is_loaded_again_has_prefixes_of_its_own(models, root):
    """Requests of the earlier number may run on, on the earlier weights, and cache their prompts."""
    load(models, "a", root / "mos")
    earlier = models.lora_requests["a"]
    asyncio.run(models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name="a")))
    load(models, "a", root / "mos")
    later = models.lora_requests["a"]
    assert block_keys(earlier) != block_keys(later) == block_keys(later)
    assert block_keys(None) is None


def block_keys(adapter):
    """What vLLM's hash of a block of 16 tokens has beside the tokens."""
    request = SimpleNamespace(lora_request=adapter, mm_features=[], cache_salt=None, prompt_embeds=None)
    return kv_cache_utils.generate_block_hash_extra_keys(request, 0, 16, 0)[0]


def test_events_of_the_prefix_cache_name_adapters_as_before(models, root):
    load(models, "a", root / "mos")
    [named] = kv_cache_utils.to_event_extra_keys([block_keys(models.lora_requests["a"])])
    assert named == ("a",)


def test_another_start_of_a_server_has_other_prefixes(models, root, monkeypatch):
    """It counts its adapters from 1 again, and a store of prefixes may have outlived it."""
    load(models, "a", root / "mos")
    earlier = block_keys(models.lora_requests["a"])
    original = kv_cache_utils._gen_lora_extra_hash_keys.__wrapped__
    monkeypatch.setattr(kv_cache_utils, "_gen_lora_extra_hash_keys", original)
    prefixes.install()
    assert block_keys(models.lora_requests["a"]) != earlier


@pytest.mark.parametrize("together", [False, True])
def test_each_load_in_place_has_a_number_of_its_own(models, root, together):
    """Also of an adapter that vLLM's resolver has loaded, and of two first loads at once."""
    request = LoadLoRAAdapterRequest(lora_name="a", lora_path=str(root / "mos"), load_inplace=True)

    async def load_both():
        await asyncio.gather(models.load_lora_adapter(request), models.load_lora_adapter(request))

    if together:
        asyncio.run(load_both())
        assert len(set(models.engine_client.numbers)) == 2
    else:
        models.lora_requests["a"] = LoRARequest("a", 7, str(root / "lora"))
        load(models, "a", root / "mos", inplace=True)
        assert models.engine_client.numbers != [7]
    assert models.lora_requests["a"].lora_int_id in models.engine_client.numbers


@pytest.mark.parametrize(
    ("named", "warned"),
    [("base", False), ("./base", False), ("other", True), ("\0", True), ("\ud800", True), ("", False), (None, False)],
)
def test_another_base_is_warned_of_once(models, root, monkeypatch, named, warned):
    said = []
    monkeypatch.setattr(api.logger, "warning", lambda text, *values: said.append(text % values))
    path = root / "mos" / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"base_model_name_or_path": named}
    path.write_text(json.dumps(config), encoding="utf-8")
    load(models, "a", root / "mos")
    load(models, "a", root / "mos", inplace=True)
    assert len(said) == warned
    assert all(f"'a' was trained on {named!r} and is served on 'base'" in each for each in said)


def resolve(models, *names):
    async def together():
        return await asyncio.gather(*(models.resolve_lora(name) for name in names))

    return asyncio.run(together())


def test_names_are_sub_folders_and_two_first_requests_load_once(models, root):
    one, other = resolve(models, "mos", "mos")
    assert one is other is models.lora_requests["mos"]
    assert models.engine_client.added == [("mos", str(root / "mos"), False)]
    [again] = resolve(models, "mos")
    assert again is one and len(models.engine_client.added) == 1


def test_a_broken_sub_folder_is_a_400_with_a_sentence(models, root):
    [response] = resolve(models, "broken")
    assert response.error.code == 400 and "is not JSON" in response.error.message


def test_an_adapter_that_does_not_fit_is_a_400_by_name_too(models, root):
    models.engine_client.error = Exception("Call to add_lora method failed: MoS adapter 'x' does not fit.")
    [response] = resolve(models, "mos")
    assert (response.error.code, response.error.message) == (400, "MoS adapter 'mos' does not fit.")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../root/mos",
        "./mos",
        "mos/",
        "mos/.",
        "x/../mos",
        "..\\mos",
        "/etc",
        "mos\0",
        "a" * 300,
        "\udcff",
        "none",
    ],
)
def test_a_name_cannot_leave_its_folder_or_be_a_second_name(models, root, name):
    assert found_folder(root, name) is None
    [response] = resolve(models, name)
    assert response.error.code == 404 and not models.engine_client.added


@given(st.text(st.characters(), max_size=12))
@example(".")
@settings(max_examples=200, suppress_health_check=list(HealthCheck))
def test_no_name_leads_out_of_the_folder(root, name):
    folder = found_folder(root, name)
    assert folder is None or folder.parent == root
    inside = Path(os.path.normpath(root / name)) if "\0" not in name else root
    assert leaves(name) or root in inside.parents


def test_without_a_folder_of_adapters_no_name_is_resolved(models, root, monkeypatch):
    monkeypatch.delenv(ROOT_VARIABLE)
    [response] = resolve(models, "mos")
    assert response.error.code == 404


def test_inspection_leaves_what_is_no_folder_to_vllm(tmp_path, root):
    for folder in (tmp_path / "none", root / "lora", root / "lora" / "adapter_config.json"):
        assert inspect(folder, 16) == (False, None, None, None)
    assert inspect(root / "mos", 16)[:3] == (True, stamp(root / "mos"), None)


@pytest.mark.parametrize("method", ["mos", "TIED_LORA", "VERA", None, ["MOS"], {}])
def test_an_adapter_of_another_method_is_a_400_with_a_sentence(models, root, method):
    (root / "lora" / "adapter_config.json").write_text(json.dumps({"peft_type": method}), encoding="utf-8")
    for response in (load(models, "a", root / "lora"), *resolve(models, "lora")):
        assert response.error.code == 400 and "not 'MOS' or 'LORA'" in response.error.message
        assert str(root) not in response.error.message
    assert not models.engine_client.added


@pytest.mark.parametrize("error", [KeyError("base_model_name_or_path"), TypeError("r"), ValueError("rank")])
def test_a_configuration_that_vllm_s_resolver_cannot_read_is_a_400(models, root, error):
    class Resolver:
        async def resolve_lora(self, base, name):
            raise error

    models.lora_resolvers = [Resolver()]
    [response] = resolve(models, "lora")
    assert response.error.code == 400 and "'lora' has a configuration that vLLM cannot read" in response.error.message


@pytest.mark.parametrize("folder", ["o'brien", "two 'quotes' in", "a\nline"])
def test_the_sentence_has_the_name_and_not_the_folder(models, root, folder):
    (root / "broken").rename(root / folder)
    response = load(models, "it's", root / folder)
    assert response.error.message.startswith("MoS adapter 'it's' has an adapter_config.json that is not JSON")
    assert str(root) not in response.error.message


def test_a_path_of_one_s_home_is_known(models, root, monkeypatch):
    monkeypatch.setenv("HOME", str(root))
    load(models, "a", "~/mos")
    load(models, "a", "~/mos", inplace=True)
    assert models.engine_client.numbers == [1, 2] and models.lora_requests["a"].load_inplace is False
    (root / "mos" / "adapter_model.safetensors").write_bytes(b"x")
    response = load(models, "a", "~/mos", inplace=True)
    assert response.error.code == 400 and response.error.message.startswith("MoS adapter 'a' has a broken")


@pytest.mark.parametrize(("first", "second"), [("mos", "lora"), ("lora", "mos"), ("lora", "lora")])
def test_another_adapter_in_the_same_folder_has_a_number_of_its_own(models, root, first, second):
    shutil.copytree(root / first, root / "users" / "a")
    load(models, "a", root / "users" / "a")
    shutil.rmtree(root / "users" / "a")
    shutil.copytree(root / second, root / "users" / "a")
    load(models, "a", root / "users" / "a", inplace=True)
    assert models.engine_client.numbers == [1, 2]


def ask(models, name):
    """What vLLM's handlers of requests do first; None, or an error."""
    serving = BaseServing(models, models.model_config)
    return asyncio.run(serving._check_model(SimpleNamespace(model=name)))


def break_(folder):
    (folder / "adapter_model.safetensors").write_bytes(b"x")


def remove(folder):
    shutil.rmtree(folder)


def replace_by_lora(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.parent / "lora", folder)


@pytest.mark.parametrize(
    ("change", "said"), [(break_, "has a broken"), (remove, "no longer there"), (replace_by_lora, "no longer there")]
)
def test_what_cannot_be_read_again_is_refused_once_it_has_left_the_memory(models, root, change, said):
    """An error within a step would end the engine."""
    load(models, "a", root / "mos")
    assert ask(models, "a") is None and ask(models, "base") is None
    change(root / "mos")
    models.engine_client.resident = {1}
    assert ask(models, "a") is None  # from memory, as it was
    models.engine_client.resident = set()
    for _ in range(2):
        response = ask(models, "a")
        assert response.error.code == 400 and response.error.message.startswith("MoS adapter 'a'")
        assert said in response.error.message and ask(models, "base") is None
    assert models.engine_client.numbers == [1]


def test_changed_files_are_read_again_under_another_number(models, root):
    load(models, "a", root / "mos")
    os.utime(root / "mos" / "adapter_model.safetensors", ns=(1, 1))
    assert ask(models, "a") is None and ask(models, "a") is None
    assert models.engine_client.numbers == [1, 2] and models.lora_requests["a"].lora_int_id == 2
    assert models.engine_client.added == 2 * [("a", str(root / "mos"), False)]


def test_of_many_requests_at_once_one_reads_the_changed_files(models, root):
    load(models, "a", root / "mos")
    os.utime(root / "mos" / "adapter_model.safetensors", ns=(1, 1))
    serving = BaseServing(models, models.model_config)

    async def together():
        return await asyncio.gather(*(serving._check_model(SimpleNamespace(model="a")) for _ in range(5)))

    assert asyncio.run(together()) == [None] * 5
    assert models.engine_client.numbers == [1, 2]


def test_changed_files_that_do_not_fit_the_model_are_tried_once_and_are_a_400(models, root):
    load(models, "a", root / "mos")
    os.utime(root / "mos" / "adapter_model.safetensors", ns=(1, 1))
    engine, tried = models.engine_client, []

    async def add_lora(request):
        tried.append(request.lora_int_id)
        raise Exception("Call to add_lora method failed: MoS adapter 'x' does not fit.")

    engine.add_lora = add_lora
    for _ in range(3):
        assert ask(models, "a").error.message == "MoS adapter 'a' does not fit."
    engine.resident = {1}
    assert ask(models, "a") is None  # the earlier weights answer
    assert len(tried) == 1 and models.lora_requests["a"].lora_int_id == 1
    del engine.add_lora
    os.utime(root / "mos" / "adapter_model.safetensors", ns=(2, 2))
    assert ask(models, "a") is None and models.lora_requests["a"].lora_int_id == engine.numbers[-1] > 1


def test_files_that_go_while_they_are_read_leave_the_earlier_weights(models, root):
    load(models, "a", root / "mos")
    os.utime(root / "mos" / "adapter_model.safetensors", ns=(1, 1))
    models.engine_client.error = LoRAAdapterNotFoundError("a", str(root / "mos"))
    models.engine_client.resident = {1}
    assert ask(models, "a") is None
    models.engine_client.resident = set()
    assert ask(models, "a").error.code == 400


def test_a_request_that_waited_for_a_load_does_not_bring_the_earlier_folder_back(models, root):
    """It saw files that had changed, and waits for the lock that a load of another folder holds."""
    load(models, "a", root / "mos")
    earlier = models.lora_requests["a"]
    os.utime(root / "mos" / "adapter_model.safetensors", ns=(1, 1))
    other = shutil.copytree(root / "mos", root / "other")
    load(models, "a", other, inplace=True)
    assert asyncio.run(api.rereading(models, earlier)) is None
    assert models.lora_requests["a"].lora_path == str(other) and len(models.engine_client.numbers) == 2


def test_requests_for_other_adapters_ask_the_engine_nothing(models, root):
    load(models, "a", root / "lora")
    load(models, "b", root / "mos")
    os.utime(root / "lora" / "adapter_model.safetensors", ns=(1, 1))
    models.engine_client.error = RuntimeError("asked")
    assert ask(models, "a") is ask(models, "b") is ask(models, "base") is None


@pytest.mark.parametrize(("path", "code"), [("~nobody-of-this-name/x", 404), ("~\0", 400)])
def test_the_home_of_nobody_is_no_error_of_the_server(models, path, code):
    models.engine_client.error = LoRAAdapterNotFoundError("a", path)
    assert load(models, "a", path).error.code == code
