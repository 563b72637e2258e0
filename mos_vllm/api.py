"""vLLM's API server with MoS adapters: read off the engine's loop first, and refused with a 4xx and a sentence."""

import asyncio
import functools
import re
from http import HTTPStatus
from pathlib import Path
from typing import Any

import vllm.envs as envs
from vllm.entrypoints.openai.models.serving import ErrorResponse, OpenAIServingModels, create_error_response
from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

from mos_vllm.adapter import AdapterError
from mos_vllm.reading import is_mos, read, read_config, sub_folder

UNLOADED = 10_000  # names
# vLLM passes a worker's error on as text, with words of its own around it.
SENTENCE = re.compile(r"MoS adapter '.*?(?=', please check the stack trace|$)", re.DOTALL)


def install() -> None:
    """Wrap the two methods by which adapters come into the API server; once in a process."""
    if not hasattr(OpenAIServingModels.load_lora_adapter, "__wrapped__"):
        models: Any = OpenAIServingModels
        models.load_lora_adapter = loading(models.load_lora_adapter)
        models.resolve_lora = resolving(models.resolve_lora)


def loading(original: Any) -> Any:
    """`load_lora_adapter` for folders of MoS adapters: a fault is a 400 with its sentence."""

    @functools.wraps(original)
    async def load_lora_adapter(self: Any, request: LoadLoRAAdapterRequest, base_model_name: str | None = None) -> Any:
        lora_config = self.engine_client.vllm_config.lora_config
        if lora_config is None:  # vLLM says that LoRA is not enabled
            return await original(self, request, base_model_name)
        mos, fault = await asyncio.to_thread(inspect, Path(request.lora_path), lora_config.max_lora_rank)
        if fault:
            return bad_request(fault, request.lora_name)
        response = await original(self, request, base_model_name)
        if isinstance(response, ErrorResponse):
            sentence = SENTENCE.search(response.error.message)
            return bad_request(sentence[0], request.lora_name) if sentence else response
        if mos:
            self.lora_requests[request.lora_name].load_inplace = False  # else vLLM asks for it again in every step
            await forget_prefixes(self, request)
        return response

    return load_lora_adapter


def resolving(original: Any) -> Any:
    """`resolve_lora` for the names of sub-folders with MoS adapters, as vLLM's own resolver does for LoRA."""

    @functools.wraps(original)
    async def resolve_lora(self: Any, lora_name: str) -> Any:
        folder = None if lora_name in self.lora_requests else await asyncio.to_thread(named_folder, lora_name)
        if folder is None:
            return await original(self, lora_name)
        response = await self.load_lora_adapter(LoadLoRAAdapterRequest(lora_name=lora_name, lora_path=str(folder)))
        return self.lora_requests.get(lora_name, response)  # of two first requests at once one loads, both are served

    return resolve_lora


async def forget_prefixes(models: Any, request: LoadLoRAAdapterRequest) -> None:
    """Drop the prefix cache if this name and folder were served before: vLLM would take the earlier weights' for it.

    It is also dropped once for every `UNLOADED` names that are loaded no more, so that these need not all be kept.
    """
    served = models.__dict__.setdefault("mos_served", set())
    name = (request.lora_name, request.lora_path)
    full = len(served) >= len(models.lora_requests) + UNLOADED
    if full:
        served.clear()
        served.update((loaded.lora_name, loaded.lora_path) for loaded in models.lora_requests.values())
    if full or name in served:
        await models.engine_client.reset_prefix_cache(reset_running_requests=True)
    served.add(name)


def inspect(folder: Path, max_rank: int) -> tuple[bool, str | None]:
    """Whether a folder holds a MoS adapter, and why it cannot be served, as far as its files tell.

    The file is then in the system's cache, so that the engine's loop reads it without waiting for a disk.
    """
    try:
        if not is_mos(read_config(folder)):
            return False, None
        read(folder, max_rank)
    except AdapterError as error:
        return True, str(error)
    except OSError:  # no folder here: a name on a hub, or vLLM says that it does not exist
        return False, None
    return True, None


def named_folder(name: str) -> Path | None:
    """The sub-folder of VLLM_LORA_RESOLVER_CACHE_DIR called `name`, if it holds a MoS adapter or a broken one."""
    root = envs.VLLM_LORA_RESOLVER_CACHE_DIR
    folder = sub_folder(Path(root), name) if root else None
    try:
        return folder if folder and is_mos(read_config(folder)) else None
    except AdapterError:
        return folder
    except OSError:  # it has gone in between
        return None


def bad_request(sentence: str, name: str) -> ErrorResponse:
    """A 400 that calls the adapter by its name, since a client need not know the server's folders."""
    message = re.sub(r"^MoS adapter '.*?'", lambda _: f"MoS adapter '{name}'", sentence)
    return create_error_response(message, "BadRequestError", HTTPStatus.BAD_REQUEST)
