"""vLLM's manager of adapters, with MoS adapters beside LoRA ones."""

import copy
import time
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from vllm.exceptions import LoRAAdapterNotFoundError
from vllm.logger import init_logger
from vllm.lora.lora_model import LoRAModel
from vllm.lora.request import LoRARequest
from vllm.lora.utils import get_adapter_absolute_path, parse_fine_tuned_lora_name
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from mos_vllm.adapter import NAMES, AdapterError
from mos_vllm.held import Held, hold
from mos_vllm.reading import ROOT, Stamp, is_mos, read, read_config, stamp
from mos_vllm.slots import MosLoRAModel, MosModelManager

logger = init_logger("vllm.mos")
FORGET = 1000  # requests that are kept beyond what is registered, so that they are looked through rarely


class MosWorkerManager(LRUCacheWorkerLoRAManager):
    """Reads MoS adapters, leaves all others to vLLM, and looks requests up without copying the registry."""

    _manager_cls = MosModelManager
    _adapter_manager: MosModelManager

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: dict[int, LoRARequest] = {}  # by their numbers, as far as they are registered or in use
        self.in_use: dict[int, LoRAModel] = {}  # the MoS adapters of the last step, by their numbers

    def create_lora_manager(self, model: Any, vllm_config: Any) -> Any:
        """Called by vLLM once; the preloaded adapters are read here, before the KV cache is sized."""
        adapted = super().create_lora_manager(model, vllm_config)
        manager = self._adapter_manager
        if manager.options.preload and not manager.refusal:
            manager.preloaded.fill(Path(manager.options.preload), self.hold, show=vllm_config.parallel_config.rank == 0)
            manager.count_held()
        return adapted

    def add_adapter(self, lora_request: LoRARequest) -> bool:
        """Called by vLLM for each adapter of each step, and to load one.

        With `load_inplace` an adapter is read again if its files are not those that it was read from.
        """
        manager, number = self._adapter_manager, lora_request.lora_int_id
        self.asked[number] = once(lora_request)
        model = manager._registered_adapters.get(number)
        if model is None or (lora_request.load_inplace and not is_current(model, lora_request)):
            added = super().add_adapter(lora_request)
            if number in self.in_use:
                self.in_use[number] = manager._registered_adapters[number]
            return added
        with gpu_sync_allowed():
            manager._registered_adapters.touch(number)
            manager.activate_adapter(number)
        return True

    def remove_adapter(self, adapter_id: int) -> bool:
        self.in_use.pop(adapter_id, None)
        return super().remove_adapter(adapter_id)

    def remove_all_adapters(self) -> None:
        self.in_use.clear()
        super().remove_all_adapters()

    def set_active_adapters(self, requests: set[LoRARequest], mapping: Any | None) -> None:
        """Called by vLLM for each step.

        A set of requests has one of each name, but a name that was unloaded and loaded again has two numbers while
        requests for the earlier one run. The mapping of tokens has both.
        """
        wanted = {request.lora_int_id: request for request in requests if request}
        if mapping is not None:
            missing = set(mapping.index_mapping) - wanted.keys()
            wanted |= {number: self.asked[number] for number in missing if number in self.asked}
        if len(self.asked) > 2 * (len(self._adapter_manager) + len(wanted)) + FORGET:
            kept = self._adapter_manager._registered_adapters.keys() | wanted.keys()
            self.asked = {number: request for number, request in self.asked.items() if number in kept}
        super().set_active_adapters(wanted.values(), mapping)  # type: ignore[arg-type]  # it is iterated
        manager = self._adapter_manager
        self.in_use = {number: manager._registered_adapters[number] for number in wanted if number in manager.mos}

    def _apply_adapters(self, lora_requests: Iterable[LoRARequest]) -> None:
        super()._apply_adapters([self.settled(request) for request in lora_requests])  # type: ignore[arg-type]

    def settled(self, request: LoRARequest) -> LoRARequest:
        """The request without `load_inplace`, which is done here if the adapter is MoS.

        An error in a step ends the engine, so that a MoS adapter that cannot be read again stays as it was.
        """
        known = request.lora_int_id in self._adapter_manager.mos or request.lora_int_id in self.in_use
        if not request.load_inplace or not known:
            return request
        try:
            self.add_adapter(request)
        except Exception as error:  # of vLLM's too, where the folder holds another adapter now
            logger.warning_once("The earlier weights stay in use: %s", error)
        return once(request)

    def _load_adapter(self, lora_request: LoRARequest) -> LoRAModel:
        """The adapter in a folder, or that of the last step, which vLLM's cache also drops when it has no other.

        Its folder may be gone by now, which would end the engine, or hold other weights than the answer began with.
        """
        model = self.in_use.get(lora_request.lora_int_id)
        if isinstance(model, MosLoRAModel) and model.path == lora_request.lora_path and not lora_request.load_inplace:
            return model
        folder = Path(get_adapter_absolute_path(lora_request.lora_path))
        try:
            if not is_mos(read_config(folder)):
                return super()._load_adapter(lora_request)
            if reason := self._adapter_manager.refusal:
                raise AdapterError(folder, reason)
            held, read_from = self.held(folder)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise LoRAAdapterNotFoundError(lora_request.lora_name, lora_request.lora_path) from error
        return MosLoRAModel(lora_request.lora_int_id, held, lora_request.lora_path, read_from)

    def held(self, folder: Path) -> tuple[Held, Stamp]:
        """An adapter and the stamp of its files: preloaded, or read now."""
        read_from = stamp(folder)
        held = self._adapter_manager.preloaded.take(folder, read_from, len(self._adapter_manager))
        return held or self.hold(folder), read_from

    def hold(self, folder: Path) -> Held:
        start = time.perf_counter()
        manager = self._adapter_manager
        adapter = read(folder, self.lora_config.max_lora_rank)
        held = hold(folder, adapter, manager.stacks, manager.dtype, self.renamed)
        manager.counters.add(loads=1, load_seconds=time.perf_counter() - start)
        return held

    @cached_property
    def renamed(self) -> Callable[[str], str]:
        """vLLM's name of a layer, from PEFT's."""
        mapper = getattr(self._adapter_manager.model, "hf_to_vllm_mapper", None)
        renames = mapper.get_rename_mapper() if mapper is not None else None
        return lru_cache(NAMES)(lambda name: parse_fine_tuned_lora_name(f"{ROOT}{name}.lora_A.weight", renames)[0])


def once(request: LoRARequest) -> LoRARequest:
    """The request without `load_inplace`, which is done once and not in every step."""
    done = copy.copy(request)
    done.load_inplace = False
    return done


def is_current(model: LoRAModel, request: LoRARequest) -> bool:
    return (
        isinstance(model, MosLoRAModel)
        and model.path == request.lora_path
        and model.read_from == stamp(Path(get_adapter_absolute_path(request.lora_path)))
    )
