"""Adapters that are read when the server starts, so that their first request does not wait for it."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm
from vllm.logger import init_logger

from mos_vllm.adapter import AdapterError
from mos_vllm.held import Held
from mos_vllm.reading import CONFIG, Stamp, is_mos, read_config, stamp
from mos_vllm.store import DeviceStore

logger = init_logger("vllm.mos")


class Preloaded:
    """Adapters by their folder, until they are first asked for; then vLLM's own cache holds them.

    capacity: how many the host may hold, the registered ones included
    """

    def __init__(self, store: DeviceStore, capacity: int) -> None:
        self.store, self.capacity = store, capacity
        self.adapters: OrderedDict[Path, tuple[Held, Stamp]] = OrderedDict()
        self.size = 0  # bytes

    def fill(self, root: Path, hold: Callable[[Path], Held], *, show: bool) -> None:
        """Read the MoS adapters among the sub-folders of `root`, and copy them to the device store while it has room.

        show: a progress bar. An adapter that cannot be read is logged and left out.
        """
        for entry in tqdm(sorted(root.iterdir()), desc="MoS adapters", unit="folder", disable=not show):
            if len(self.adapters) >= self.capacity:
                break
            try:
                if not (entry / CONFIG).is_file() or not is_mos(read_config(entry)):
                    continue
                folder = entry.resolve()  # what `take` looks for; two names of one adapter are held once
                if folder not in self.adapters:
                    read_from = stamp(folder)
                    self.add(folder, hold(folder), read_from)
            except (AdapterError, OSError) as error:
                logger.warning("Not preloaded: %s", error)

    def add(self, folder: Path, held: Held, read_from: Stamp) -> None:
        self.adapters[folder] = held, read_from
        self.size += len(held.memory)
        if self.store.used + len(held.memory) <= len(self.store.memory):
            self.store.put(held.key, held.memory)

    def take(self, folder: Path, read_from: Stamp, registered: int) -> Held | None:
        """The adapter in `folder` if it was preloaded from the files that are there now.

        registered: how many adapters vLLM's cache holds; the last ones leave here until one more has room there
        """
        folder = folder.resolve()
        _, known = self.adapters.get(folder, (None, None))
        if known is not None and known != read_from:
            self.drop(folder)
        held = self.pop(folder) if folder in self.adapters else None
        while self.adapters and registered + len(self.adapters) >= self.capacity:
            self.drop(next(reversed(self.adapters)))
        return held

    def pop(self, folder: Path) -> Held:
        held, _ = self.adapters.pop(folder)
        self.size -= len(held.memory)
        return held

    def drop(self, folder: Path) -> None:
        self.store.drop(self.pop(folder).key)
