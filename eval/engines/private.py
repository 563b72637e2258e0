"""What we use of vLLM and torch that is no public interface of theirs; docs/upgrading.md lists it with its tests."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import torch

from eval.engines.environment import ALWAYS, set_environment


def core(llm: Any) -> Any:
    """The engine inside vLLM's `LLM`: requests are added while others run, and finished ones come out at once."""
    return llm.llm_engine


def release(llm: Any) -> None:
    """Stop an `LLM` that runs in this process, and free its memory. Without this the GPU stays full."""
    from vllm.distributed import cleanup_dist_env_and_memory

    core(llm).engine_core.shutdown()
    cleanup_dist_env_and_memory()


def without_compiling() -> AbstractContextManager[None]:
    """In here torch.compile does nothing if TORCH_COMPILE_DISABLE is 1. torch read that before we set it."""
    disabled = os.environ.get("TORCH_COMPILE_DISABLE") == "1"
    return torch._dynamo.config.patch(disable=disabled)  # type: ignore[no-any-return]


@cache
def mos_refusal() -> str | None:
    """What in this vLLM keeps it from taking MoS adapters as they are saved; None if nothing does."""
    set_environment(ALWAYS)  # finding its source imports vLLM
    from mos_vllm.expected import lacking

    return next(lacking(), None)


@contextmanager
def mos_adapters() -> Iterator[None]:
    """An engine that is made in here takes MoS adapters as they are saved, whether or not vLLM finds the plugin."""
    from vllm.v1.worker import lora_model_runner_mixin

    from mos_vllm.install import rebind
    from mos_vllm.manager import MosWorkerManager

    before = lora_model_runner_mixin.LRUCacheWorkerLoRAManager
    rebind(MosWorkerManager)
    try:
        yield
    finally:
        rebind(before)


@contextmanager
def grouped_lora() -> Iterator[None]:
    """An engine that is made in here applies LoRA on a CPU by `mos_vllm.lora_cpu.GroupedLoRA` instead of vLLM's own."""
    from vllm.platforms.cpu import CpuPlatform

    from mos_vllm.lora_cpu import GroupedLoRA

    name = f"{GroupedLoRA.__module__}.{GroupedLoRA.__name__}"
    before = CpuPlatform.__dict__["get_punica_wrapper"]
    CpuPlatform.get_punica_wrapper = classmethod(lambda cls: name)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        CpuPlatform.get_punica_wrapper = before  # type: ignore[method-assign]
