"""vLLM's managers of adapters, with MoS adapters beside LoRA ones."""

import time
from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from vllm.exceptions import LoRAAdapterNotFoundError
from vllm.logger import init_logger
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LRUCacheLoRAModelManager
from vllm.lora.request import LoRARequest
from vllm.lora.utils import get_adapter_absolute_path, parse_fine_tuned_lora_name
from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager
from vllm.utils.gpu_sync_debug import gpu_sync_allowed

from mos_vllm.adapter import NAMES, AdapterError
from mos_vllm.held import Held, hold
from mos_vllm.metrics import Counters
from mos_vllm.options import GIB, read_options
from mos_vllm.preload import Preloaded
from mos_vllm.reading import ROOT, Stamp, is_mos, read, read_config, stamp
from mos_vllm.stack import build_stacks
from mos_vllm.store import DeviceStore

logger = init_logger("vllm.mos")
FORGET = 1000  # requests that are kept beyond what is registered, so that they are looked through rarely


class MosLoRAModel(LoRAModel):
    """What vLLM's cache of adapters holds for a MoS adapter: no weights of layers, but pools and indices."""

    def __init__(self, lora_model_id: int, held: Held, path: str, read_from: Stamp) -> None:
        super().__init__(lora_model_id, held.rank, {})
        self.held, self.path, self.read_from = held, path, read_from


class MosModelManager(LRUCacheLoRAModelManager):
    """Writes MoS adapters into the slots, from the device store or the host."""

    def __init__(self, *, vllm_config: Any, **kwargs: Any) -> None:
        super().__init__(vllm_config=vllm_config, **kwargs)
        self.prepare(vllm_config)

    def prepare(self, vllm_config: Any) -> None:
        """What MoS adds to vLLM's manager, once the layers have been made adaptable."""
        self.options = read_options(vllm_config.additional_config)
        self.stacks, self.rest = build_stacks(self.modules, self.packed_modules)
        self.store = DeviceStore(self.options.device_bytes(self.device.type), self.device)
        parallel = vllm_config.parallel_config
        self.counters = Counters(parallel.data_parallel_rank * parallel.world_size + parallel.rank)
        self.mos: dict[int, Held] = {}  # the registered adapters that are MoS
        self.mos_bytes = 0
        self.preloaded = Preloaded(self.store, self.capacity)
        self.unstacked: set[int] = set()  # slots in which vLLM may have written layers that have no stack
        self.ranks: dict[int, int] = {}  # of what each slot holds; the kernel for CPUs computes no more
        for wrapper in self.punica_wrapper_mapping.values():
            wrapper.ranks = self.ranks  # type: ignore[attr-defined]  # others do not read it
        self.refusal = refusal(vllm_config, self.is_pooling_model)
        logger.info("%s", self.capacities())

    @property
    def dtype(self) -> torch.dtype:
        """The type in which vLLM keeps adapters; a name of it is resolved before a model is loaded."""
        return cast(torch.dtype, self.lora_config.lora_dtype)

    def capacities(self) -> str:
        """How many adapters fit, for the log."""
        stacks = self.stacks.values()
        one = self.dtype.itemsize * sum(len(stack.names) * (stack.in_features + stack.out_features) for stack in stacks)
        fits = ", ".join(f"{len(self.store.memory) // (e * one)} of e={e}" for e in (1, 2, 4, 8)) if one else "none"
        return (
            f"MoS adapters on all {len(self.stacks)} layer types take {one / 2**20:.2f} MiB x e. The device store "
            f"({len(self.store.memory) / GIB:.2f} GiB) holds {fits}; the host holds max_cpu_loras={self.capacity}; "
            f"{self.lora_slots} are active at a time, up to rank {self.lora_config.max_lora_rank}."
        )

    def _create_merged_loras_inplace(self, lora_model: LoRAModel) -> None:
        """Called by vLLM for each adapter that is registered, to pack the weights of fused layers."""
        if isinstance(lora_model, MosLoRAModel):
            self.mos[lora_model.id] = lora_model.held
            self.mos_bytes += len(lora_model.held.memory)
            self.count_held()
        else:
            super()._create_merged_loras_inplace(lora_model)

    def activate_adapter(self, lora_id: int) -> bool:
        """Write an adapter into a slot; False if it is in one."""
        held = None if lora_id in self._active_adapters else self.mos.get(lora_id)
        if held is None:
            activated = super().activate_adapter(lora_id)
            if activated:
                slot = self.lora_index_to_id.index(lora_id)
                self.unstacked.add(slot)
                self.ranks[slot] = lora_rank(self._registered_adapters[lora_id], self.lora_config.max_lora_rank)
            return activated
        start = time.perf_counter()
        if len(self._active_adapters) >= self.lora_slots:
            self._active_adapters.remove_oldest()
        slot = self.lora_index_to_id.index(None)
        self.write(slot, held)
        self.ranks[slot] = held.rank
        self._active_adapters[lora_id] = None
        self.lora_index_to_id[slot] = lora_id
        self.counters.add(activations=1, activation_seconds=time.perf_counter() - start)
        return True

    def write(self, slot: int, held: Held) -> None:
        memory = self.on_device(held)
        index = held.indices.numbers.to(self.device, non_blocking=True).int()
        for kind, stack in self.stacks.items():
            if part := held.parts.get(kind):
                stack.write(slot, part, memory, index)
            else:
                stack.reset(slot)
        if slot in self.unstacked:
            self.unstacked.remove(slot)
            for module in self.rest:
                module.reset_lora(slot)

    def on_device(self, held: Held) -> Tensor:
        """The adapter's memory on the device: in the store, or a copy that lives as long as this activation.

        The host's is not pinned: torch rounds each pinned piece up to a power of two, up to twice its size.
        """
        if held.memory.device == self.device and not len(self.store.memory):
            return held.memory
        memory = self.store.get(held.key)
        if memory is None:
            self.counters.add(misses=1)
            memory = self.store.put(held.key, held.memory)
            self.count_held()
        return held.memory.to(self.device) if memory is None else memory

    def deactivate_adapter(self, adapter_id: int) -> bool:
        """Also called by vLLM when an adapter has left the host's cache: it leaves the device store too."""
        done = super().deactivate_adapter(adapter_id)
        if adapter_id not in self._registered_adapters and (held := self.mos.pop(adapter_id, None)):
            self.store.drop(held.key)
            self.mos_bytes -= len(held.memory)
            self.count_held()
        return done

    def pin_adapter(self, lora_id: int) -> bool:
        """Keep an adapter on the host, in its slot, and in the device store if it is there."""
        done = super().pin_adapter(lora_id)
        if (held := self.mos.get(lora_id)) and held.key in self.store.held:
            self.store.pinned.add(held.key)
        return done

    def count_held(self) -> None:
        """In a time that does not depend on how many are held, since this runs in steps."""
        self.counters.set(
            adapters_on_host=len(self.mos) + len(self.preloaded.adapters),
            bytes_on_host=self.mos_bytes + self.preloaded.size,
            adapters_on_device=len(self.store.held),
            bytes_on_device=self.store.used,
        )


def lora_rank(lora: LoRAModel, max_rank: int) -> int:
    """The largest rank among the factors of a LoRA adapter: its configuration may name others for single layers.

    max_rank where there are factors of other dimensions, as experts have them
    """
    sides = [side if isinstance(side, list) else [side] for side in (each.lora_a for each in lora.loras.values())]
    factors = [factor for side in sides for factor in side if factor is not None]  # (r, h)
    return max((len(a) if a.ndim == 2 else max_rank for a in factors), default=max_rank)


def refusal(vllm_config: Any, pooling: bool) -> str | None:
    """Why this server takes no MoS adapter, if it does not."""
    if vllm_config.model_config.enable_sleep_mode:
        return "cannot be served with sleep mode, which discards the device store. Start without --enable-sleep-mode."
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        return "cannot be served with pipeline parallelism. Use --tensor-parallel-size instead."
    if pooling:
        return "cannot be served with a pooling model, since it was trained for generation."
    return None


class MosWorkerManager(LRUCacheWorkerLoRAManager):
    """Reads MoS adapters, leaves all others to vLLM, and looks requests up without copying the registry."""

    _manager_cls = MosModelManager
    _adapter_manager: MosModelManager

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.asked: dict[int, LoRARequest] = {}  # by their numbers, as far as they are registered or in use

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
        manager = self._adapter_manager
        self.asked[lora_request.lora_int_id] = lora_request
        model = manager._registered_adapters.get(lora_request.lora_int_id)
        if model is None or (lora_request.load_inplace and not is_current(model, lora_request)):
            return super().add_adapter(lora_request)
        with gpu_sync_allowed():
            manager._registered_adapters.touch(lora_request.lora_int_id)
            manager.activate_adapter(lora_request.lora_int_id)
        return True

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

    def _apply_adapters(self, lora_requests: Iterable[LoRARequest]) -> None:
        super()._apply_adapters([self.settled(request) for request in lora_requests])  # type: ignore[arg-type]

    def settled(self, request: LoRARequest) -> LoRARequest:
        """The request without `load_inplace`, which is done here if the adapter is MoS.

        An error in a step ends the engine, so that a MoS adapter that cannot be read again stays as it was.
        """
        if not request.load_inplace or request.lora_int_id not in self._adapter_manager.mos:
            return request
        try:
            self.add_adapter(request)
        except Exception as error:  # of vLLM's too, where the folder holds another adapter now
            logger.warning_once("The earlier weights stay in use: %s", error)
        return LoRARequest(request.lora_name, request.lora_int_id, request.lora_path, request.base_model_name)

    def _load_adapter(self, lora_request: LoRARequest) -> LoRAModel:
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


def is_current(model: LoRAModel, request: LoRARequest) -> bool:
    return (
        isinstance(model, MosLoRAModel)
        and model.path == request.lora_path
        and model.read_from == stamp(Path(get_adapter_absolute_path(request.lora_path)))
    )
