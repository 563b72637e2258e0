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

    def fill(self, root: Path, hold: Callable[[Path], Held], *, show: bool) -> None:
        """Read the MoS adapters among the sub-folders of `root`, and copy them to the device store while it has room.

        show: a progress bar. An adapter that cannot be read is logged and left out.
        """
        folders = [folder for folder in sorted(root.resolve().iterdir()) if (folder / CONFIG).is_file()]
        for folder in tqdm(folders[: self.capacity], desc="MoS adapters", unit="adapter", disable=not show):
            try:
                if is_mos(read_config(folder)):
                    read_from = stamp(folder)
                    self.adapters[folder] = (held := hold(folder)), read_from
                    self.move(held)
            except (AdapterError, OSError) as error:
                logger.warning("Not preloaded: %s", error)

    def move(self, held: Held) -> None:
        if self.store.used + len(held.memory) <= len(self.store.memory):
            self.store.put(held.key, held.memory)

    def take(self, folder: Path, read_from: Stamp, registered: int) -> Held | None:
        """The adapter in `folder` if it was preloaded from the files that are there now.

        registered: how many adapters vLLM's cache holds; others leave here until one more has room
        """
        held, known = self.adapters.pop(folder.resolve(), (None, None))
        while self.adapters and registered + len(self.adapters) >= self.capacity:
            _, (other, _) = self.adapters.popitem()
            self.store.drop(other.key)
        if held is not None and known != read_from:
            self.store.drop(held.key)
            return None
        return held
