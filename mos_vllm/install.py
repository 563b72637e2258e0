"""Putting the plugin in place: a class of vLLM is rebound, methods of its API server and a function are wrapped."""

import vllm
from vllm.logger import init_logger

from mos_vllm.expected import VERSIONS, lacking

logger = init_logger("vllm.mos")


def install() -> None:
    """Make vLLM take MoS adapters, or refuse them with a reason if this vLLM is not what the plugin was written for."""
    if missing := next(lacking(), None):
        refuse(missing)
        return
    # only now: these import what has been checked
    from vllm.platforms import current_platform

    from mos_vllm import api, metrics, prefixes
    from mos_vllm.manager import MosWorkerManager

    rebind(MosWorkerManager)
    api.install()
    prefixes.install()
    metrics.publish()
    if current_platform.is_cpu():
        from mos_vllm import lora_cpu

        lora_cpu.install()


def refuse(missing: str) -> None:
    """Let vLLM go on with LoRA, and say why MoS adapters are refused: now in the log, later to who loads one."""
    reason = (
        f"cannot be served by vLLM {vllm.__version__}, where {missing} is not as expected. Install {VERSIONS}, or "
        "export the adapter with mos.export_lora."
    )
    logger.error("A MoS adapter %s", reason)
    from mos_vllm.refusing import RefusingWorkerManager

    RefusingWorkerManager.reason = reason
    rebind(RefusingWorkerManager)


def rebind(manager: type) -> None:
    """Put `manager` where vLLM's model runner looks up the class it builds."""
    from vllm.v1.worker import lora_model_runner_mixin

    lora_model_runner_mixin.LRUCacheWorkerLoRAManager = manager  # type: ignore[assignment, misc]
