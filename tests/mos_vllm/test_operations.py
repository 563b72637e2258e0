"""Preloading, reloading, unloading, pinning and refusing in one engine."""

import json
import shutil
import subprocess
import sys

import pytest

import mos
from tests.mos_vllm.make import save_adapter, tiny_llama

pytestmark = pytest.mark.slow
pytest.importorskip("vllm", reason="vLLM is not installed")


@pytest.fixture(scope="module")
def seen(tmp_path_factory, plugin_environment):
    work = tmp_path_factory.mktemp("operations")
    tiny_llama().save_pretrained(work / "base")
    for number in range(4):
        partial = {"target_modules": ["q_proj", "up_proj"]} if number == 3 else {}
        save_adapter(work / f"mos-{number}", seed=number, **partial)
        mos.export_lora(work / f"mos-{number}", work / f"lora-{number}")
    save_adapter(work / "preload" / "a", seed=10)
    save_adapter(work / "preload" / "b", seed=11)
    mos.export_lora(work / "preload" / "a", work / "lora-a")
    shutil.copytree(work / "lora-0", work / "preload" / "lora")
    save_adapter(work / "wide", model=tiny_llama(intermediate_size=128))
    save_adapter(work / "too-large", r=20, equivalent_rank=4)
    save_adapter(work / "deep", model=tiny_llama(num_hidden_layers=9))
    shutil.copytree(work / "mos-0", work / "broken")
    shutil.copytree(work / "broken", work / "preload" / "broken")
    for broken in (work / "broken", work / "preload" / "broken"):
        (broken / "adapter_model.safetensors").write_bytes(b"{")
    command = [sys.executable, "-m", "tests.mos_vllm.operations", str(work)]
    environment = plugin_environment | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((work / "operations.json").read_text(encoding="utf-8")) | {"log": done.stdout + done.stderr}


def test_preloaded_adapters_are_read_at_start_and_not_again(seen):
    part = seen["preloading"]
    assert part["at_start"]["loads"] == part["after"]["loads"] == 2
    assert part["at_start"]["adapters_on_device"] == part["at_start"]["adapters_on_host"] == 2
    assert part["after"]["adapters_on_host"] == 2 and part["left"] == 1 and part["after"]["misses"] == 0
    assert part["tokens"] == seen["preloaded_exported"]


def test_preloading_leaves_a_broken_adapter_out_and_says_so(seen):
    assert "Not preloaded: MoS adapter" in seen["log"] and "MoS adapters: 100%" in seen["log"]


def test_the_log_says_how_many_adapters_fit(seen):
    """On the tiny model: 8 blocks, widths 64 and 96, float32."""
    one = 4 * 8 * (4 * (64 + 64) + 3 * (64 + 96)) / 2**20
    assert f"MoS adapters on all 7 layer types take {one:.2f} MiB x e" in seen["log"]
    assert "max_cpu_loras=3; 2 are active at a time, up to rank 16" in seen["log"]


def test_a_reload_happens_in_place_when_asked_for_and_only_of_changed_files(seen):
    part = seen["reloading"]
    assert part["first"] == part["unasked"] == seen["exported"]["1"]
    assert part["asked"] == seen["exported"]["2"] != part["first"]
    assert part["loads_of_unchanged_files"] == 0


def test_a_broken_reload_within_a_step_keeps_the_earlier_weights(seen):
    assert seen["reloading"]["broken"] == seen["reloading"]["gone"] == seen["exported"]["2"]
    assert "The earlier weights stay in use" in seen["log"]


def test_an_unloaded_adapter_leaves_the_host_and_can_come_back(seen):
    part = seen["unloading"]
    assert part["removed"] is True
    (listed, held), (listed_after, held_after) = part["before"], part["after"]
    assert (listed, listed_after) == (True, False) and held_after == held - 1
    assert part["again"] == seen["exported"]["0"]


def test_a_pinned_adapter_stays_while_others_come_and_go(seen):
    part = seen["pinning"]
    assert part["listed"] and part["in_slot"] and part["on_device"]
    assert part["tokens"] == seen["exported"]["3"]


def test_an_adapter_that_answers_stays_when_others_push_it_out_and_its_folder_goes(seen):
    assert seen["crowding"]["pushed_out"] and seen["crowding"]["tokens"] == seen["exported"]["1"]


@pytest.mark.parametrize(
    ("folder", "kind", "said"),
    [
        ("nowhere", "LoRAAdapterNotFoundError", "nowhere"),
        ("broken", "AdapterError", "broken or truncated"),
        ("wide", "AdapterError", "(in, out) features (96, 64), the adapter (128, 64)"),
        ("too-large", "AdapterError", "r=20"),
        ("deep", "AdapterError", "no layer 'model.layers.8"),
    ],
)
def test_an_adapter_that_cannot_be_served_is_refused_and_the_engine_goes_on(seen, folder, kind, said):
    found, message = seen["refusing"]["errors"][folder]
    assert found == kind and said in message
    assert seen["refusing"]["tokens"] == seen["exported"]["1"]


def test_the_registry_is_not_copied_for_adapters_that_are_registered(seen):
    assert seen["looking_up"]["copies"] == 0


def test_an_activation_takes_at_most_six_operations_a_layer_type(seen):
    part = seen["counting_operations"]
    assert part["layer_types"] == 7 and part["operations"] <= 6 * 7
