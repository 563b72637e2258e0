"""vLLM's API server with MoS adapters: read off the engine's loop first, and refused with a 4xx and a sentence."""

import asyncio
import functools
import os
import re
import reprlib
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, cast

import vllm.envs as envs
from vllm.entrypoints.openai.models.serving import ErrorResponse, OpenAIServingModels, create_error_response
from vllm.entrypoints.serve.engine.serving import BaseServing
from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

from mos_vllm.adapter import AdapterError
from mos_vllm.reading import Stamp, is_mos, read, read_config, stamp, sub_folder

UNLOADED = 10_000  # names
# vLLM passes a worker's error on as text, with words of its own around it.
SENTENCE = re.compile(r"MoS adapter '.*?(?=', please check the stack trace|$)", re.DOTALL)


def install() -> None:
    """Wrap the methods by which adapters and requests come into the API server; once in a process."""
    if not hasattr(OpenAIServingModels.load_lora_adapter, "__wrapped__"):
        models, serving = cast(Any, OpenAIServingModels), cast(Any, BaseServing)
        models.load_lora_adapter = loading(models.load_lora_adapter)
        models.resolve_lora = resolving(models.resolve_lora)
        serving._check_model = checking(serving._check_model)


def loading(original: Any) -> Any:
    """`load_lora_adapter` for folders of MoS adapters: a fault is a 400 with its sentence."""

    @functools.wraps(original)
    async def load_lora_adapter(self: Any, request: LoadLoRAAdapterRequest, base_model_name: str | None = None) -> Any:
        lora_config = self.engine_client.vllm_config.lora_config
        if lora_config is None:  # vLLM says that LoRA is not enabled
            return await original(self, request, base_model_name)
        found = await asyncio.to_thread(inspect, folder_of(request), lora_config.max_lora_rank)
        if found.fault:
            return bad_request(found.fault, request)
        response = await original(self, request, base_model_name)
        if isinstance(response, ErrorResponse):
            sentence = SENTENCE.search(response.error.message)
            return bad_request(sentence[0], request) if sentence else response
        if found.mos:
            self.lora_requests[request.lora_name].load_inplace = False  # else vLLM asks for it again in every step
        await forget_prefixes(self, request, found)
        return response

    return load_lora_adapter


def resolving(original: Any) -> Any:
    """`resolve_lora` for the names of sub-folders with MoS adapters, as vLLM's own resolver does for LoRA."""

    @functools.wraps(original)
    async def resolve_lora(self: Any, lora_name: str) -> Any:
        root = envs.VLLM_LORA_RESOLVER_CACHE_DIR
        if lora_name in self.lora_requests or not root:
            return await original(self, lora_name)
        if leaves(lora_name):  # vLLM's own resolver would follow it
            message = f"The model '{lora_name}' does not exist: a name cannot leave the folder of the adapters."
            return create_error_response(message, "NotFoundError", HTTPStatus.NOT_FOUND, "model")
        folder = await asyncio.to_thread(named_folder, Path(root), lora_name)
        if folder is None:
            try:
                return await original(self, lora_name)
            except (LookupError, TypeError, ValueError) as error:  # of a configuration that lacks what vLLM reads
                message = f"The adapter '{lora_name}' has a configuration that vLLM cannot read: {error}."
                return create_error_response(message, "BadRequestError", HTTPStatus.BAD_REQUEST)
        response = await self.load_lora_adapter(LoadLoRAAdapterRequest(lora_name=lora_name, lora_path=str(folder)))
        return self.lora_requests.get(lora_name, response)  # of two first requests at once one loads, both are served

    return resolve_lora


def checking(original: Any) -> Any:
    """`_check_model`, which sees each request first, with a look at the files of the MoS adapter that it names."""

    @functools.wraps(original)
    async def _check_model(self: Any, request: Any) -> Any:
        loaded = getattr(self.models, "lora_requests", {}).get(request.model)
        fault = await rereading(self.models, loaded) if loaded is not None else None
        return bad_request(fault, loaded) if fault else await original(self, request)

    return _check_model


class Found(NamedTuple):
    """What a folder holds: whether a MoS adapter, the stamp of its files, and why it cannot be served."""

    mos: bool
    files: Stamp | None = None
    fault: str | None = None


async def rereading(models: Any, loaded: Any) -> str | None:
    """Why an adapter cannot be served any more. An error within a step would end the engine.

    One whose files have changed is served from memory as it was, while it is there. One that has left the host's memory
    is read again by vLLM: if it is broken it is refused here; if not, the prefixes of its earlier weights are dropped.
    """
    name = (loaded.lora_name, loaded.lora_path)
    known, folder = known_files(models).get(name), folder_of(loaded)
    if known is None or await asyncio.to_thread(stamp, folder) == known:
        return None
    if loaded.lora_int_id in await models.engine_client.list_loras():
        return None
    found = await asyncio.to_thread(inspect, folder, models.engine_client.vllm_config.lora_config.max_lora_rank)
    if found.mos and not found.fault:
        known_files(models)[name] = found.files
        await models.engine_client.reset_prefix_cache(reset_running_requests=True)
        return None
    return found.fault or f"MoS adapter '{folder}' is no longer there."


def known_files(models: Any) -> dict[tuple[str, str], Stamp | None]:
    """The stamps of the MoS adapters that were served, by name and path; None for adapters of vLLM's own kinds."""
    return cast(dict[tuple[str, str], Stamp | None], models.__dict__.setdefault("mos_served", {}))


async def forget_prefixes(models: Any, request: LoadLoRAAdapterRequest, found: Found) -> None:
    """Drop the prefix cache if this name and folder were served before: vLLM would take the earlier weights' for it.

    It is also dropped once for every `UNLOADED` names that are loaded no more, so that these need not all be kept.
    """
    served, name = known_files(models), (request.lora_name, request.lora_path)
    full = len(served) >= len(models.lora_requests) + UNLOADED
    if full:
        loaded = {(each.lora_name, each.lora_path) for each in models.lora_requests.values()}
        for other in served.keys() - loaded:
            del served[other]
    if full or name in served:
        await models.engine_client.reset_prefix_cache(reset_running_requests=True)
    served[name] = found.files


def folder_of(request: Any) -> Path:
    return Path(request.lora_path).expanduser()


def inspect(folder: Path, max_rank: int) -> Found:
    """What a folder holds, as far as its files tell.

    The file is then in the system's cache, so that the engine's loop reads it without waiting for a disk.
    """
    try:
        config = read_config(folder)
        if not is_mos(config):
            return Found(False, fault=foreign(folder, config))
        files = stamp(folder)
        read(folder, max_rank)
    except AdapterError as error:
        return Found(True, fault=str(error))
    except OSError:  # no folder here: a name on a hub, or vLLM says that it does not exist
        return Found(False)
    return Found(True, files)


def foreign(folder: Path, config: dict[str, Any]) -> str | None:
    """Why vLLM cannot take an adapter of this method; None for LoRA, and where the method is not named."""
    method = config.get("peft_type", "LORA")
    named = reprlib.repr(method)
    return None if method == "LORA" else f"MoS adapter '{folder}' has peft_type={named}, not 'MOS' or 'LORA'."


def leaves(name: str) -> bool:
    """Whether a name leads out of a folder, is the folder itself, or a second name of what is in it."""
    return "\0" in name or name == "." or name.startswith(("/", "..")) or os.path.normpath(name) != name


def named_folder(root: Path, name: str) -> Path | None:
    """The sub-folder called `name`, if it holds a MoS adapter, a broken one, or one of a method that nobody serves."""
    folder = sub_folder(root, name)
    try:
        config = read_config(folder) if folder else {}
        return folder if is_mos(config) or (folder and foreign(folder, config)) else None
    except AdapterError:
        return folder
    except OSError:  # it has gone in between
        return None


def bad_request(sentence: str, request: Any) -> ErrorResponse:
    """A 400 that calls the adapter by its name, since a client need not know the server's folders."""
    start = f"MoS adapter '{folder_of(request)}'"
    if sentence.startswith(start):
        message = f"MoS adapter '{request.lora_name}'{sentence.removeprefix(start)}"
    else:  # a folder that vLLM has downloaded
        message = re.sub(r"^MoS adapter '.*?'", lambda _: f"MoS adapter '{request.lora_name}'", sentence)
    return create_error_response(message, "BadRequestError", HTTPStatus.BAD_REQUEST)
