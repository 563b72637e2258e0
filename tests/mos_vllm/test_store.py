"""The device store against a slow model of it: contents, order of leaving, pinning, no lost room."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mos_vllm.held import ALIGNMENT
from mos_vllm.store import DeviceStore

CPU = torch.device("cpu")


def content(adapter, cells):
    return torch.full((cells * ALIGNMENT,), adapter, dtype=torch.uint8)


@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.sampled_from(["use", "use", "use", "pin", "drop"]), st.integers(0, 9)), max_size=60),
    st.booleans(),
)
def test_contents_are_whole_and_the_least_recently_used_leave(cells, steps, equal):
    store = DeviceStore(cells * ALIGNMENT, CPU)
    size = {adapter: 1 if equal else 1 + adapter % 4 for adapter in range(10)}
    order, pinned = [], set()  # the model, for equal sizes
    for step, adapter in steps:
        if step == "use":
            held = store.get(adapter)
            if held is None:
                held = store.put(adapter, content(adapter, size[adapter]))
                if equal and held is not None and len(order) == cells:
                    order.remove(next(other for other in order if other not in pinned))
            if held is not None:
                assert torch.equal(held, content(adapter, size[adapter]))
                order = [other for other in order if other != adapter] + [adapter]
            elif equal:
                assert len(pinned) == cells
        elif step == "pin" and adapter in store.held:
            store.pinned.add(adapter)
            pinned.add(adapter)
        elif step == "drop":
            store.drop(adapter)
            order = [other for other in order if other != adapter]
            pinned.discard(adapter)
        if equal:
            assert list(store.held) == order
        for other in store.held:
            start, _ = store.held[other]
            assert torch.equal(
                store.memory[start : start + len(content(other, size[other]))], content(other, size[other])
            )
        assert pinned <= store.held.keys() or not equal
        assert store.used + sum(width for _, width in store.holes) == cells * ALIGNMENT


def test_what_is_larger_than_the_store_is_not_taken_and_nothing_leaves_for_it():
    store = DeviceStore(2 * ALIGNMENT, CPU)
    store.put(1, content(1, 1))
    assert store.put(2, content(2, 3)) is None
    assert list(store.held) == [1]


def test_a_store_of_no_size_takes_nothing():
    assert DeviceStore(0, CPU).put(1, content(1, 1)) is None


def test_after_all_have_left_the_room_is_one_hole():
    store = DeviceStore(6 * ALIGNMENT, CPU)
    for adapter in range(4):
        store.put(adapter, content(adapter, 1))
    for adapter in (2, 0, 3, 1):
        store.drop(adapter)
    assert store.holes == [(0, 6 * ALIGNMENT)]
    assert store.put(5, content(5, 6)) is not None
