"""vLLM's manager of slots, with MoS adapters beside LoRA ones: from the host, or the device store, into a slot."""

import time
from typing import Any, cast

import torch
from torch import Tensor
from vllm.logger import init_logger
from vllm.lora.lora_model import LoRAModel
from vllm.lora.model_manager import LRUCacheLoRAModelManager

from mos_vllm.held import Held
from mos_vllm.metrics import Counters
from mos_vllm.options import GIB, read_options
from mos_vllm.preload import Preloaded
from mos_vllm.reading import Stamp
from mos_vllm.stack import build_stacks
from mos_vllm.store import DeviceStore

logger = init_logger("vllm.mos")


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
        self.refusal = refusal(vllm_config, self.is_pooling_model)
        self.options = read_options(vllm_config.additional_config)
        self.stacks, self.rest = build_stacks(self.modules, self.packed_modules)
        size = 0 if self.refusal else self.options.device_bytes(self.device.type)
        self.store = DeviceStore(size, self.device)
        parallel = vllm_config.parallel_config
        self.counters = Counters(parallel.data_parallel_rank * parallel.world_size + parallel.rank)
        self.mos: dict[int, Held] = {}  # the registered adapters that are MoS
        self.mos_bytes = 0
        self.preloaded = Preloaded(self.store, self.capacity)
        self.unstacked: set[int] = set()  # slots in which vLLM may have written layers that have no stack
        self.ranks: dict[int, int] = {}  # of what each slot holds; the kernel for CPUs computes no more
        for wrapper in self.punica_wrapper_mapping.values():
            wrapper.ranks = self.ranks  # type: ignore[attr-defined]  # others do not read it
        logger.info("%s", f"A MoS adapter {self.refusal}" if self.refusal else self.capacities())

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
        if slot in self.unstacked:  # before the stacks: a fused layer without one may hold views of others
            self.unstacked.remove(slot)
            for module in self.rest:
                module.reset_lora(slot)
        for kind, stack in self.stacks.items():
            if part := held.parts.get(kind):
                stack.write(slot, part, memory, index)
            else:
                stack.reset(slot)

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
