"""What is preloaded is handed over once, never stale, and never more than the host may hold."""

import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm", reason="vLLM is not installed")
from mos_vllm.held import ALIGNMENT, Held, shared
from mos_vllm.preload import Preloaded
from mos_vllm.reading import stamp
from mos_vllm.store import DeviceStore


@pytest.fixture
def root(tmp_path):
    for name, kind in (("a", "MOS"), ("b", "MOS"), ("c", "LORA"), ("d", "MOS")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(f'{{"peft_type": "{kind}"}}', encoding="utf-8")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "adapter_config.json").write_text("{", encoding="utf-8")
    (tmp_path / "file").write_text("", encoding="utf-8")
    return tmp_path


def hold(folder):
    return Held(1, torch.zeros(ALIGNMENT, dtype=torch.uint8), shared(torch.zeros(1, dtype=torch.int32)), {})


def filled(root, *, cells=2, capacity=9):
    preloaded = Preloaded(DeviceStore(cells * ALIGNMENT, torch.device("cpu")), capacity)
    preloaded.fill(root, hold, show=False)
    return preloaded


def names(preloaded):
    return [folder.name for folder in preloaded.adapters]


def test_mos_adapters_are_held_and_the_device_store_filled(root):
    preloaded = filled(root)
    assert names(preloaded) == ["a", "b", "d"] and preloaded.size == 3 * ALIGNMENT
    assert len(preloaded.store.held) == 2  # none leaves for another


def test_no_more_are_held_than_the_capacity(root):
    assert names(filled(root, capacity=2)) == ["a", "b"]


def test_lora_and_broken_folders_take_no_place(root):
    for name in ("0", "1", "2"):
        shutil.copytree(root / "c", root / name)
    assert names(filled(root, capacity=3)) == ["a", "b", "d"]


def test_an_adapter_is_handed_over_once_also_through_a_link(root, tmp_path):
    preloaded = filled(root)
    [held] = [held for folder, (held, _) in preloaded.adapters.items() if folder.name == "a"]
    (tmp_path / "link").symlink_to(root / "a")
    assert preloaded.take(tmp_path / "link", stamp(root / "a"), 0) is held
    assert preloaded.take(root / "a", stamp(root / "a"), 0) is None
    assert held.key in preloaded.store.held and preloaded.size == 2 * ALIGNMENT


@pytest.fixture
def linked(root, tmp_path_factory):
    """A folder of names that lead to adapters elsewhere, two of them to one, and a link that leads nowhere."""
    users = tmp_path_factory.mktemp("users")
    for name, target in (("ann", root / "a"), ("bob", root / "b"), ("also-ann", root / "a"), ("loop", users / "loop")):
        (users / name).symlink_to(target)
    return users


@pytest.mark.parametrize("name", ["ann", "also-ann"])
def test_a_link_that_is_preloaded_is_handed_over_and_no_copy_stays(linked, name):
    preloaded = filled(linked)
    assert preloaded.size == 2 * ALIGNMENT
    assert preloaded.take(linked / name, stamp(linked / name), 0) is not None
    assert names(preloaded) == ["b"] and preloaded.size == ALIGNMENT


def test_a_folder_that_may_not_be_looked_into_is_left_out(root, monkeypatch):
    """As `lost+found` of a disk; root looks into each, so that the refusal is made here."""
    (root / "lost+found").mkdir()
    allowed = Path.stat

    def stat(path, **options):
        if "lost+found" in path.parts[:-1]:
            raise PermissionError(13, "Permission denied", str(path))
        return allowed(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert names(filled(root)) == ["a", "b", "d"]


def test_an_adapter_whose_files_have_changed_is_dropped(root):
    preloaded = filled(root)
    shutil.copy(root / "b" / "adapter_config.json", root / "new")
    (root / "new").replace(root / "a" / "adapter_config.json")
    assert preloaded.take(root / "a", stamp(root / "a"), 0) is None
    assert names(preloaded) == ["b", "d"] and len(preloaded.store.held) == 1 and preloaded.size == 2 * ALIGNMENT


def test_the_last_leave_when_registered_ones_need_their_places(root):
    preloaded = filled(root, capacity=3)
    assert preloaded.take(root / "none", (), registered=1) is None  # one more will be registered
    assert names(preloaded) == ["a"] and len(preloaded.store.held) == 1
    preloaded.take(root / "none", (), registered=9)
    assert names(preloaded) == [] and preloaded.size == 0
