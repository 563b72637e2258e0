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

import mos
from mos_vllm import api
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
        self.added, self.resets, self.error, self.resident = [], 0, None, set()

    async def add_lora(self, request):
        await asyncio.sleep(0.01)
        if self.error:
            raise self.error
        self.added.append((request.lora_name, request.lora_path, request.load_inplace))

    async def list_loras(self):
        return set(self.resident)

    async def reset_prefix_cache(self, reset_running_requests=False):
        assert reset_running_requests
        self.resets += 1


@pytest.fixture
def models(monkeypatch):
    for name in ("load_lora_adapter", "resolve_lora"):
        method = getattr(OpenAIServingModels, name)
        monkeypatch.setattr(OpenAIServingModels, name, getattr(method, "__wrapped__", method))
    method = BaseServing._check_model
    monkeypatch.setattr(BaseServing, "_check_model", getattr(method, "__wrapped__", method))
    api.install()
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


def test_a_lora_adapter_is_left_to_vllm(models, root):
    assert "Success" in load(models, "a", root / "lora", inplace=True)
    assert models.lora_requests["a"].load_inplace is True  # as vLLM has it


def test_names_that_are_loaded_no_more_are_not_all_kept(models, root, monkeypatch):
    """When they are forgotten, so are their prefixes; those of loaded adapters are still known."""
    monkeypatch.setattr(api, "UNLOADED", 5)
    load(models, "stays", root / "mos")
    for number in range(25):
        load(models, f"goes {number}", root / "mos")
        del models.lora_requests[f"goes {number}"]
        assert len(models.mos_served) <= 2 + 5
    assert models.engine_client.resets == 4
    load(models, "stays", root / "mos", inplace=True)
    assert models.engine_client.resets == 5


def test_a_reload_in_place_is_asked_for_once_and_drops_the_prefix_cache(models, root):
    load(models, "a", root / "mos")
    assert "already been loaded" in load(models, "a", root / "mos").error.message
    assert models.engine_client.resets == 0
    assert "Success" in load(models, "a", root / "mos", inplace=True)
    assert models.engine_client.added[-1][2] is True and models.lora_requests["a"].load_inplace is False
    assert models.engine_client.resets == 1


def test_unloading_and_loading_again_drops_the_prefix_cache(models, root):
    """vLLM's prefix cache goes by name and folder: the files may have changed in between."""
    load(models, "a", root / "mos")
    asyncio.run(models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name="a")))
    load(models, "b", root / "mos")
    assert models.engine_client.resets == 0
    load(models, "a", root / "mos")
    assert models.engine_client.resets == 1


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
    assert inspect(tmp_path / "none", 16) == (False, None, None)
    assert inspect(root / "lora", 16) == (False, None, None)
    assert inspect(root / "lora" / "adapter_config.json", 16) == (False, None, None)
    assert inspect(root / "mos", 16) == (True, stamp(root / "mos"), None)


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
    assert models.engine_client.resets == 1 and models.lora_requests["a"].load_inplace is False
    (root / "mos" / "adapter_model.safetensors").write_bytes(b"x")
    response = load(models, "a", "~/mos", inplace=True)
    assert response.error.code == 400 and response.error.message.startswith("MoS adapter 'a' has a broken")


@pytest.mark.parametrize(("first", "second"), [("mos", "lora"), ("lora", "mos"), ("lora", "lora")])
def test_another_adapter_in_the_same_folder_drops_the_prefix_cache(models, root, first, second):
    shutil.copytree(root / first, root / "users" / "a")
    load(models, "a", root / "users" / "a")
    shutil.rmtree(root / "users" / "a")
    shutil.copytree(root / second, root / "users" / "a")
    load(models, "a", root / "users" / "a", inplace=True)
    assert models.engine_client.resets == 1


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
    response = ask(models, "a")
    assert response.error.code == 400 and response.error.message.startswith("MoS adapter 'a'")
    assert said in response.error.message and ask(models, "base") is None


def test_prefixes_of_earlier_weights_are_dropped_when_changed_files_are_read_again(models, root):
    load(models, "a", root / "mos")
    weights = root / "mos" / "adapter_model.safetensors"
    os.utime(weights, ns=(1, 1))
    models.engine_client.resident = {1}
    assert ask(models, "a") is None and models.engine_client.resets == 0
    models.engine_client.resident = set()
    assert ask(models, "a") is None and models.engine_client.resets == 1
    assert ask(models, "a") is None and models.engine_client.resets == 1


def test_requests_for_other_adapters_ask_the_engine_nothing(models, root):
    models.engine_client.resident = None  # would raise
    load(models, "a", root / "lora")
    load(models, "b", root / "mos")
    os.utime(root / "lora" / "adapter_model.safetensors", ns=(1, 1))
    assert ask(models, "a") is ask(models, "b") is ask(models, "base") is None
