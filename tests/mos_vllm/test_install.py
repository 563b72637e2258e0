"""What the plugin relies on is checked; a vLLM that has changed refuses MoS and goes on with LoRA."""

import logging
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import pytest

import mos_vllm
from mos_vllm.adapter import AdapterError
from mos_vllm.expected import SIGNATURES, WORDS, installed_source, lacking
from mos_vllm.metrics import FOLDER
from tests.mos_vllm.make import save_adapter

pytest.importorskip("vllm", reason="vLLM is not installed")


@pytest.fixture(autouse=True)
def kept_as_it_was(monkeypatch, tmp_path):
    """What registering changes in this process is put back."""
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.worker import lora_model_runner_mixin

    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setattr(CpuPlatform, "get_punica_wrapper", CpuPlatform.get_punica_wrapper)
    manager = lora_model_runner_mixin.LRUCacheWorkerLoRAManager
    monkeypatch.setattr(lora_model_runner_mixin, "LRUCacheWorkerLoRAManager", manager)
    for name in ("load_lora_adapter", "resolve_lora"):
        monkeypatch.setattr(OpenAIServingModels, name, getattr(OpenAIServingModels, name))
    keys = kv_cache_utils._gen_lora_extra_hash_keys
    monkeypatch.setattr(kv_cache_utils, "_gen_lora_extra_hash_keys", getattr(keys, "__wrapped__", keys))


def test_the_installed_vllm_is_as_expected():
    assert list(lacking()) == []


CHANGES = [
    ("vllm.lora.worker_manager", "def _load_adapter(self, lora_request", "def _load_adapter(self, request"),
    ("vllm.lora.worker_manager", "def _apply_adapters(self, lora_requests", "def _apply(self, lora_requests"),
    ("vllm.lora.model_manager", "def _create_merged_loras_inplace(self, lora_model", "def _merge(self, lora_model"),
    ("vllm.lora.model_manager", "self.lora_index_to_id", "self.index_to_id"),
    ("vllm.lora.model_manager", "class LRUCacheLoRAModelManager(LoRAModelManager)", "class LRUCacheLoRAModelManager"),
    ("vllm.v1.worker.lora_model_runner_mixin", "= LRUCacheWorkerLoRAManager(", "= make_manager("),
    ("vllm.lora.layers.base_linear", "self.lora_a_stacked", "self.lora_a"),
    ("vllm.lora.lora_model", "loras: dict[str, LoRALayerWeights],", ""),
    ("vllm.entrypoints.openai.models.serving", "async def resolve_lora(self, lora_name", "async def find(self, name"),
    ("vllm.utils.cache", "def touch(self, key", "def refresh(self, key"),
    ("vllm.v1.core.kv_cache_utils", "def _gen_lora_extra_hash_keys(request:", "def _gen_lora_keys(request:"),
    ("vllm.v1.core.kv_cache_utils", "= _gen_lora_extra_hash_keys(request)", "= request.lora_keys"),
    ("vllm.v1.core.kv_cache_utils", '[("lora", lora_request.lora_name', "[(lora_request.lora_name"),
    ("vllm.entrypoints.openai.models.serving", "self.lora_id_counter.inc(1)", "next(self.lora_numbers)"),
]


@pytest.mark.parametrize(("module", "before", "after"), CHANGES)
def test_a_change_of_vllm_is_noticed(module, before, after):
    def source(name):
        text = installed_source(name)
        assert name != module or before in text
        return text.replace(before, after) if name == module else text

    found = list(lacking(source))
    assert found and all(problem.startswith(module) for problem in found)


@pytest.mark.parametrize("module", sorted({*SIGNATURES, *WORDS}))
def test_a_module_that_is_gone_is_noticed(module):
    def source(name):
        if name == module:
            raise FileNotFoundError(name)
        return installed_source(name)

    assert list(lacking(source)) == [module]


@pytest.mark.slow
def test_vllm_0_33_is_as_expected(tmp_path):
    """Its wheel is read, since there is no CPU build of it to install."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q", "-d", str(tmp_path)]
    done = subprocess.run(
        [*command, "--platform", "manylinux_2_28_x86_64", "vllm==0.33.0"], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"PyPI is not reachable: {done.stderr[-200:]}")
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:

        def source(module):
            try:
                return archive.read(module.replace(".", "/") + ".py").decode()
            except KeyError as error:
                raise FileNotFoundError(module) from error

        assert list(lacking(source)) == []


@pytest.fixture
def changed_vllm(monkeypatch):
    """The plugin, installed in a vLLM of which something is missing; put back afterwards."""
    from vllm.v1.worker import lora_model_runner_mixin as mixin

    from mos_vllm import install
    from mos_vllm.refusing import RefusingWorkerManager

    monkeypatch.setattr(RefusingWorkerManager, "reason", "")
    monkeypatch.setattr(install, "lacking", lambda: iter(["vllm.lora.worker_manager: gone(self)"]))
    mos_vllm.register()
    return mixin


def test_a_changed_vllm_refuses_mos_with_the_versions_that_fit(changed_vllm, tmp_path):
    manager = object.__new__(changed_vllm.LRUCacheWorkerLoRAManager)
    folder = save_adapter(tmp_path / "adapter", target_modules=["q_proj"])
    with pytest.raises(AdapterError) as error:
        manager._load_adapter(SimpleNamespace(lora_path=str(folder), lora_name="a"))
    assert "gone(self) is not as expected" in str(error.value)
    assert "vllm==0.32.* or vllm==0.33.*" in str(error.value) and "mos.export_lora" in str(error.value)


def test_a_changed_vllm_says_that_the_home_of_nobody_has_no_adapter(changed_vllm, monkeypatch):
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

    monkeypatch.setattr(LRUCacheWorkerLoRAManager, "_load_adapter", lambda self, request: "as vLLM says it")
    manager = object.__new__(changed_vllm.LRUCacheWorkerLoRAManager)
    assert manager._load_adapter(SimpleNamespace(lora_path="~nobody-of-this-name/x")) == "as vLLM says it"


def test_a_changed_vllm_goes_on_with_lora(changed_vllm, monkeypatch, tmp_path):
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

    monkeypatch.setattr(LRUCacheWorkerLoRAManager, "_load_adapter", lambda self, request: "a LoRA")
    manager = object.__new__(changed_vllm.LRUCacheWorkerLoRAManager)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}', encoding="utf-8")
    assert manager._load_adapter(SimpleNamespace(lora_path=str(tmp_path))) == "a LoRA"
    assert manager._load_adapter(SimpleNamespace(lora_path=str(tmp_path / "none"))) == "a LoRA"


def test_registering_never_raises(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "mos_vllm.install", None)  # importing it fails
    with caplog.at_level(logging.ERROR, logger="vllm.mos"):
        logging.getLogger("vllm").propagate = True
        mos_vllm.register()
    assert "MoS adapters cannot be served; LoRA adapters can." in caplog.text


def test_registering_twice_wraps_once():
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels as Models
    from vllm.v1.core import kv_cache_utils
    from vllm.v1.worker import lora_model_runner_mixin as mixin

    def wrapped():
        return Models.load_lora_adapter, Models.resolve_lora, kv_cache_utils._gen_lora_extra_hash_keys

    before = kv_cache_utils._gen_lora_extra_hash_keys
    mos_vllm.register()
    once = wrapped()
    assert once[2] is not before
    mos_vllm.register()
    assert wrapped() == once
    assert mixin.LRUCacheWorkerLoRAManager.__name__ == "MosWorkerManager"
