"""vLLM's manager of adapters with the plugin's part, on vLLM's own layers and caches, without a model."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("vllm", reason="vLLM is not installed")
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights, PackedLoRALayerWeights
from vllm.lora.model_manager import AdapterLRUCache
from vllm.lora.request import LoRARequest

from mos_vllm.adapter import AdapterError
from mos_vllm.held import ALIGNMENT, hold
from mos_vllm.manager import MosWorkerManager
from mos_vllm.options import GIB
from mos_vllm.reading import stamp
from mos_vllm.slots import MosLoRAModel, MosModelManager, lora_rank, refusal
from tests.mos_vllm.test_stack import (
    MAX_RANK,
    SLOTS,
    WIDTHS,
    lora_modules,
    narrow_kv,
    random_adapter,
    set_lora,
    slots,
)

CAPACITY, BLOCKS = 5, 3


def vllm_config(store=0.0, **changes):
    model = {"enable_sleep_mode": False}
    parallel = {"rank": 0, "data_parallel_rank": 0, "world_size": 1, "pipeline_parallel_size": 1}
    return SimpleNamespace(
        additional_config={"mos": {"device_store_gib": store}},
        model_config=SimpleNamespace(**{key: changes.get(key, value) for key, value in model.items()}),
        parallel_config=SimpleNamespace(**{key: changes.get(key, value) for key, value in parallel.items()}),
    )


def make_manager(store=0.0, modules=None, **changes):
    manager = object.__new__(MosModelManager)
    manager.lora_config = SimpleNamespace(
        max_cpu_loras=CAPACITY, max_loras=SLOTS, max_lora_rank=MAX_RANK, lora_dtype=torch.float32
    )
    manager.modules, manager.packed_modules = modules or lora_modules(BLOCKS)
    manager.device, manager.is_pooling_model = torch.device("cpu"), False
    manager._enable_mixed_moe_lora_format = manager._is_moe = False
    manager.packed_modules_mapping, manager.punica_wrapper_mapping = {}, {"language_model": SimpleNamespace()}
    manager._registered_adapters = AdapterLRUCache(CAPACITY, manager.deactivate_adapter)
    manager._active_adapters = AdapterLRUCache(SLOTS, manager._deactivate_adapter)
    manager.lora_index_to_id = [None] * SLOTS
    manager.prepare(vllm_config(store, **changes))
    return manager


ADAPTERS = [
    random_adapter(0),
    random_adapter(1, rank=8, shards=4),
    random_adapter(2, parts=("q_proj", "v_proj")),
    random_adapter(3, blocks=(1,), e=3),
    random_adapter(4, scaled=True),
    random_adapter(5, rank=2, parts=("fc",), blocks=(0, 2)),
]
PLAIN = 6  # the number of an adapter that is a LoRA, on one layer type


def model(manager, number, adapter_id):
    if number < PLAIN:
        held = hold("x", ADAPTERS[number], manager.stacks, torch.float32, str)
        return MosLoRAModel(adapter_id, held, str(number), ())
    names = [f"layers.{block}.mlp.fc" for block in range(BLOCKS)]
    weights = {name: LoRALayerWeights(name, 4, 4, torch.ones(4, 32), torch.ones(24, 4)) for name in names}
    return LoRAModel(adapter_id, 4, weights)


def expected_slots(number, slot):
    modules, packed = lora_modules(BLOCKS)
    if number < PLAIN:
        set_lora(modules, packed, slot, ADAPTERS[number])
    else:
        for block in range(BLOCKS):
            modules[f"layers.{block}.mlp.fc"].set_lora(slot, torch.ones(4, 32), torch.ones(24, 4))
    return {key: tensor[slot] for key, tensor in slots(modules).items()}


EXPECTED = {number: expected_slots(number, 0) for number in range(PLAIN + 1)}


def use(manager, adapter_id, number):
    """What vLLM's worker does for a request."""
    if adapter_id not in manager._registered_adapters:
        new = model(manager, number, adapter_id)
        if len(manager) + 1 > manager.capacity:
            manager.remove_oldest_adapter()
        manager.add_adapter(new)
    manager._registered_adapters.touch(adapter_id)
    manager.activate_adapter(adapter_id)


@pytest.mark.parametrize("store", [0.0, 3 * 70 * ALIGNMENT / GIB])
@given(
    st.lists(
        st.tuples(st.sampled_from(["use"] * 6 + ["pin", "remove", "reload", "clear"]), st.integers(1, PLAIN + 1)),
        max_size=25,
    )
)
@settings(max_examples=40, suppress_health_check=list(HealthCheck))
def test_every_active_slot_holds_its_adapter_whatever_happens(store, steps):
    manager = make_manager(store)
    number = {adapter_id: adapter_id - 1 for adapter_id in range(1, PLAIN + 2)}
    for step, adapter_id in steps:
        if step == "use":
            use(manager, adapter_id, number[adapter_id])
        elif (
            step == "pin"
            and adapter_id in manager._registered_adapters
            and not manager._registered_adapters.pinned_items
        ):
            manager.pin_adapter(adapter_id)
        elif step == "remove":
            manager.remove_adapter(adapter_id)
        elif step == "reload":  # other weights under the same id
            number[adapter_id] = (number[adapter_id] + 1) % (PLAIN + 1)
            manager.remove_adapter(adapter_id)
            use(manager, adapter_id, number[adapter_id])
        elif step == "clear":
            manager._last_mapping = manager._last_slot_layout = None
            manager.remove_all_adapters()
        check(manager, number)


def check(manager, number):
    active = [adapter_id for adapter_id in manager.lora_index_to_id if adapter_id is not None]
    assert set(active) == set(manager._active_adapters) and len(set(active)) == len(active) <= SLOTS
    assert set(active) <= set(manager._registered_adapters) and len(manager) <= CAPACITY
    held = slots(manager.modules)
    for adapter_id in active:
        slot = manager.lora_index_to_id.index(adapter_id)
        for key, tensor in EXPECTED[number[adapter_id]].items():
            torch.testing.assert_close(held[key][slot], tensor, rtol=1e-6, atol=1e-6)
            assert key[1] != "lora_a_stacked" or not tensor[0, manager.ranks[slot] :].any()
    mos = {other for other in manager._registered_adapters if number[other] < PLAIN}
    assert manager.mos.keys() == mos
    assert manager.store.held.keys() <= {held.key for held in manager.mos.values()}
    values = manager.counters.values
    assert values["adapters_on_host"] == len(mos) and values["adapters_on_device"] == len(manager.store.held)
    assert values["bytes_on_host"] == sum(len(held.memory) for held in manager.mos.values())
    assert values["bytes_on_device"] == manager.store.used


def test_the_kernel_is_told_the_ranks_of_slots():
    manager = make_manager()
    [wrapper] = manager.punica_wrapper_mapping.values()
    for adapter_id, number in ((1, 1), (2, 5), (3, PLAIN)):
        use(manager, adapter_id, number)
    assert wrapper.ranks is manager.ranks and manager.ranks == {0: 8, 1: 2, 2: 4}


def test_the_rank_of_a_lora_is_that_of_its_widest_factor():
    """A rank_pattern gives single layers other ranks; fused layers hold a list, with None for what is not adapted."""
    narrow, wide = (LoRALayerWeights("x", 2, 2, torch.ones(r, 8), torch.ones(8, r)) for r in (2, 5))
    fused = PackedLoRALayerWeights("y", 2, [2, None], [torch.ones(7, 8), None], [torch.ones(8, 7), None], [1.0, 1.0])
    experts = LoRALayerWeights("z", 2, 2, torch.ones(4, 2, 8), torch.ones(4, 8, 2))
    for layers, rank in (([narrow], 2), ([narrow, wide], 5), ([wide, fused], 7), ([narrow, experts], 16), ([], 16)):
        assert lora_rank(LoRAModel(1, 2, {str(i): each for i, each in enumerate(layers)}), 16) == rank


def test_a_layer_without_a_stack_is_cleared_after_a_plain_lora_only():
    manager = make_manager()
    cleared = []
    manager.rest = [SimpleNamespace(reset_lora=cleared.append)]
    use(manager, 1, 0)
    assert cleared == []
    use(manager, 7, PLAIN)
    slot = manager.lora_index_to_id.index(7)
    manager.remove_adapter(7)
    use(manager, 2, 1)
    assert manager.lora_index_to_id.index(2) == slot and cleared == [slot]


@pytest.mark.parametrize("parts", [("q_proj",), ("q_proj", "o_proj", "router"), ("fc",)])
def test_a_fused_layer_with_and_without_stacks_holds_the_adapter_after_a_plain_lora(parts):
    """Blocks whose queries are of one width and whose keys and values are not."""
    manager = make_manager(modules=narrow_kv(*lora_modules(BLOCKS), block=1))
    assert "layers.*.attn.q_proj" in manager.stacks and "layers.*.attn.k_proj" not in manager.stacks
    for module in manager.rest:  # what a LoRA has left in the slot
        module.lora_a_stacked[1][:], module.lora_b_stacked[1][:] = 7, 7
    manager.unstacked = set(range(SLOTS))
    adapter = random_adapter(3, parts=parts)
    manager.add_adapter(MosLoRAModel(1, hold("x", adapter, manager.stacks, torch.float32, str), "3", ()))
    manager.activate_adapter(1)
    expected, packed = narrow_kv(*lora_modules(BLOCKS), block=1)
    set_lora(expected, packed, 0, adapter)
    wanted = slots(expected)
    for key, tensor in slots(manager.modules).items():
        torch.testing.assert_close(tensor[0], wanted[key][0], rtol=1e-6, atol=1e-6, msg=str(key))


@pytest.mark.parametrize("changes", [{"enable_sleep_mode": True}, {"pipeline_parallel_size": 2}])
def test_a_server_that_takes_no_mos_adapters_keeps_its_memory(changes):
    assert len(make_manager(store=1.0, **changes).store.memory) == 0


def test_an_adapter_in_the_device_store_is_not_copied_again():
    manager = make_manager(store=100 * 70 * ALIGNMENT / GIB)
    for adapter_id in (1, 2, 3, 4, 1, 2, 3, 4):
        use(manager, adapter_id, adapter_id - 1)
    assert manager.counters.values["activations"] == 8 and manager.counters.values["misses"] == 4


def test_the_log_line_counts_from_the_shapes():
    manager = make_manager(store=1.0)
    one = 4 * BLOCKS * sum(h + o for h, o in WIDTHS.values())
    assert f"{GIB // one} of e=1, {GIB // (2 * one)} of e=2" in manager.capacities()


@pytest.mark.parametrize(
    ("changes", "pooling", "said"),
    [
        ({}, False, None),
        ({"enable_sleep_mode": True}, False, "--enable-sleep-mode"),
        ({"pipeline_parallel_size": 2}, False, "pipeline parallelism"),
        ({}, True, "pooling"),
    ],
)
def test_servers_that_take_no_mos_adapters_say_why(changes, pooling, said):
    reason = refusal(vllm_config(**changes), pooling)
    assert reason is None if said is None else said in reason


def test_a_refusing_server_refuses_mos_alone(tmp_path):
    worker = object.__new__(MosWorkerManager)
    worker._adapter_manager, worker.in_use = SimpleNamespace(refusal="cannot be served today."), {}
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "MOS"}', encoding="utf-8")
    with pytest.raises(AdapterError, match="cannot be served today"):
        worker._load_adapter(LoRARequest("a", 1, str(tmp_path)))


def test_looking_up_a_registered_adapter_copies_nothing(monkeypatch):
    manager = make_manager()
    worker = object.__new__(MosWorkerManager)
    worker._adapter_manager, worker.asked, worker.in_use = manager, {}, {}
    for adapter_id in (1, 2):
        use(manager, adapter_id, adapter_id - 1)
    monkeypatch.setattr(worker, "list_adapters", lambda: pytest.fail("copied"))
    monkeypatch.setattr(manager, "list_adapters", lambda: pytest.fail("copied"))
    assert worker.add_adapter(LoRARequest("b", 1, "0")) is True
    assert list(manager._registered_adapters.order) == [2, 1]  # touched


@pytest.fixture
def worker(monkeypatch):
    """vLLM's worker manager on the manager above; a request's path is the number of its adapter."""
    made = object.__new__(MosWorkerManager)
    made._adapter_manager, made.asked, made.in_use, made.mappings = make_manager(), {}, {}, []
    monkeypatch.setattr(
        made, "_load_adapter", lambda request: model(made._adapter_manager, int(request.lora_path), request.lora_int_id)
    )
    made._adapter_manager.set_adapter_mapping = made.mappings.append
    return made


def step(worker, requests, numbers):
    """A step with tokens of these adapters' numbers, 0 for none; each must be in a slot then."""
    worker.set_active_adapters(requests, SimpleNamespace(index_mapping=numbers))
    assert {number for number in numbers if number} <= set(worker._adapter_manager.lora_index_to_id)


def test_a_name_that_is_loaded_again_while_it_runs_has_two_numbers(worker):
    """vLLM's set of requests has one of each name; the slots must hold both."""
    earlier, later = LoRARequest("same", 1, "0"), LoRARequest("same", 2, "1")
    step(worker, {earlier}, (1, 1, 0))
    worker.add_adapter(later)
    for other in (3, 4):
        step(worker, {LoRARequest(f"other {other}", other, "2")}, (other,))  # takes their slots
    for kept in (earlier, later):
        step(worker, {kept}, (1, 2, 0))
        assert worker._adapter_manager.lora_index_to_id.index(1) != worker._adapter_manager.lora_index_to_id.index(2)


def test_requests_that_nobody_needs_are_forgotten(worker, monkeypatch):
    monkeypatch.setattr("mos_vllm.manager.FORGET", 4)
    for number in range(1, 60):
        step(worker, {LoRARequest(str(number), number, str(number % PLAIN))}, (number,))
        assert len(worker.asked) <= 2 * (CAPACITY + 1) + 4 + 1
    assert {59} <= worker.asked.keys()


@pytest.mark.parametrize("error", [AdapterError("x", "is broken."), ValueError("no LoRA"), KeyError("r")])
def test_whatever_is_wrong_with_a_reload_within_a_step_the_earlier_weights_stay(worker, monkeypatch, error):
    step(worker, {LoRARequest("a", 1, "0")}, (1,))

    def fails(request):
        raise error

    monkeypatch.setattr(worker, "_load_adapter", fails)
    step(worker, {LoRARequest("a", 1, "1", load_inplace=True)}, (1,))


@pytest.fixture
def reading(worker, monkeypatch, tmp_path):
    """The worker above with vLLM's loading; folders hold the number of an adapter. `folder(name, number)` writes one.

    The host has two places, as many as an answer of two adapters needs.
    """
    monkeypatch.undo()
    worker.lora_config = worker._adapter_manager.lora_config
    worker._adapter_manager._registered_adapters = AdapterLRUCache(2, worker._adapter_manager.deactivate_adapter)
    monkeypatch.setattr(MosModelManager, "capacity", 2)
    monkeypatch.setattr("mos_vllm.manager.read", lambda folder, _: ADAPTERS[int((folder / "number").read_text())])
    worker._adapter_manager.model = None

    def folder(name, number):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "adapter_config.json").write_text(f'{{"peft_type": "MOS", "x": {number}}}', "utf-8")
        (tmp_path / name / "number").write_text(str(number), "utf-8")
        return tmp_path / name

    worker.folder, worker.mappings = folder, []
    worker._adapter_manager.set_adapter_mapping = worker.mappings.append
    return worker


def holds(worker, adapter_id, number):
    manager = worker._adapter_manager
    slot, held = manager.lora_index_to_id.index(adapter_id), slots(manager.modules)
    for key, tensor in EXPECTED[number].items():
        torch.testing.assert_close(held[key][slot], tensor, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("change", ["gone", "other weights"])
def test_an_adapter_in_use_is_not_read_again_when_others_push_it_out(reading, change):
    """Its folder may be gone by then, which would end the engine; other weights would change an answer midway."""
    path = reading.folder("a", 0)
    request = LoRARequest("a", 1, str(path))
    step(reading, {request}, (1,))
    if change == "gone":
        shutil.rmtree(path)
    else:
        reading.folder("a", 4)
    for number in (2, 3):
        reading.add_adapter(LoRARequest(str(number), number, str(reading.folder(str(number), number))))
    assert 1 not in reading._adapter_manager._registered_adapters
    for _ in range(2):
        step(reading, {request}, (1,))
        holds(reading, 1, 0)


def test_an_adapter_that_was_removed_or_is_not_in_use_is_read_again(reading):
    request = LoRARequest("a", 1, str(reading.folder("a", 0)))
    for forget in (lambda: reading.remove_adapter(1), lambda: step(reading, set(), (0,)), reading.remove_all_adapters):
        reading.folder("a", 0)
        step(reading, {request}, (1,))
        forget()
        reading._adapter_manager.remove_adapter(1)
        reading.folder("a", 4)
        step(reading, {request}, (1,))
        holds(reading, 1, 4)


def test_a_load_in_place_of_an_adapter_in_use_is_what_stays_in_use(reading):
    path = reading.folder("a", 0)
    request = LoRARequest("a", 1, str(path))
    step(reading, {request}, (1,))
    reading.folder("a", 4)
    (path / "adapter_config.json").rename(path / "earlier")
    shutil.copy(path / "earlier", path / "adapter_config.json")  # another file, and another stamp
    reading.add_adapter(LoRARequest("a", 1, str(path), load_inplace=True))
    shutil.rmtree(path)
    for number in (2, 3):
        reading.add_adapter(LoRARequest(str(number), number, str(reading.folder(str(number), number))))
    step(reading, {request}, (1,))
    holds(reading, 1, 4)


def test_a_step_that_asks_for_a_load_in_place_keeps_what_was_in_use(reading):
    """Also where the adapter has left the host, and its folder is gone."""
    path = reading.folder("a", 0)
    step(reading, {LoRARequest("a", 1, str(path))}, (1,))
    reading._adapter_manager.remove_adapter(1)
    shutil.rmtree(path)
    step(reading, {LoRARequest("a", 1, str(path), load_inplace=True)}, (1,))
    holds(reading, 1, 0)


def test_a_request_that_is_remembered_asks_for_no_load_in_place(reading):
    """It stands for a number that vLLM's set of requests lacks, in any later step."""
    path = reading.folder("a", 0)
    reading.add_adapter(LoRARequest("a", 1, str(path), load_inplace=True))
    assert reading.asked[1].load_inplace is False and reading.asked[1].lora_path == str(path)
    known = stamp(path)
    reading.folder("a", 4)
    assert stamp(path) != known
    step(reading, {LoRARequest("a", 2, str(reading.folder("b", 1)))}, (1, 2))
    holds(reading, 1, 0)
