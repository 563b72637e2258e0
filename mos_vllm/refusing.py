"""vLLM's own manager of adapters for a vLLM that has changed. It relies on as little of vLLM as it can."""

from typing import Any

from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager

from mos_vllm.adapter import AdapterError
from mos_vllm.reading import CONFIG, folder_of, is_mos, read_config


class RefusingWorkerManager(LRUCacheWorkerLoRAManager):
    """LoRA goes on, a MoS adapter in a local folder is refused with the reason."""

    reason = ""

    def _load_adapter(self, lora_request: Any, *args: Any, **kwargs: Any) -> Any:
        folder = folder_of(lora_request.lora_path)
        if (folder / CONFIG).is_file() and is_mos(read_config(folder)):
            raise AdapterError(folder, self.reason)
        return super()._load_adapter(lora_request, *args, **kwargs)
