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
from vllm.logger import init_logger
from vllm.lora.request import LoRARequest

from mos_vllm.adapter import AdapterError
from mos_vllm.reading import Stamp, folder_of, is_mos, read, read_config, stamp, sub_folder

logger = init_logger("vllm.mos")
UNLOADED = 1000  # stamps that are kept beyond those of loaded adapters, so that they are looked through rarely
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
        found = await asyncio.to_thread(inspect, folder_of(request.lora_path), lora_config.max_lora_rank)
        if found.fault:
            return bad_request(found.fault, request)
        replaces = request.lora_name in self.lora_requests
        response = await original(self, request, base_model_name)
        if isinstance(response, ErrorResponse):
            sentence = SENTENCE.search(response.error.message)
            return bad_request(sentence[0], request) if sentence else response
        loaded = self.lora_requests[request.lora_name]
        loaded.load_inplace = False  # it is done; with it, vLLM reads the adapter again in every step
        if not replaces:
            warn_of_base(self, loaded, found)
        return await note(self, loaded, found, replaces) or response

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
        refused = await rereading(self.models, loaded) if loaded is not None else None
        return refused or await original(self, request)

    return _check_model


class Found(NamedTuple):
    """What a folder holds: whether a MoS adapter, the stamp of its files, why it cannot be served, and what it
    names as the base model that it was trained on."""

    mos: bool
    files: Stamp | None = None
    fault: str | None = None
    base: Any = None


async def rereading(models: Any, loaded: LoRARequest) -> ErrorResponse | None:
    """Read an adapter again if its files have changed; an error if it cannot be served any more.

    Left to vLLM, it would be read within a step once it has left the host's memory: an error would end the engine then,
    and prefixes of the earlier weights would stay.
    """
    if await is_as_noted(models, loaded):
        return None
    async with models.lora_resolver_lock[loaded.lora_name]:  # of many requests at once, one reads it
        return None if await is_as_noted(models, loaded) else await reread(models, loaded)


async def is_as_noted(models: Any, loaded: LoRARequest) -> bool:
    """Whether an adapter's files are those that are served, which only those of MoS adapters need to be."""
    known = stamps(models).get(loaded.lora_int_id)
    return known is None or await asyncio.to_thread(stamp, folder_of(loaded.lora_path)) == known


async def reread(models: Any, loaded: LoRARequest) -> ErrorResponse | None:
    """Replace the weights of an adapter by those that its folder holds now.

    While these cannot be served, the earlier ones are, as long as the engine holds them.
    """
    folder, engine = folder_of(loaded.lora_path), models.engine_client
    found = await asyncio.to_thread(inspect, folder, engine.vllm_config.lora_config.max_lora_rank)
    fault = found.fault or (None if found.mos else f"MoS adapter '{folder}' is no longer there.")
    if fault is None:
        fault = await replaced(engine, loaded)
    if fault is None:
        return await note(models, loaded, found, replaces=True)
    return None if loaded.lora_int_id in await engine.list_loras() else bad_request(fault, loaded)


async def replaced(engine: Any, loaded: LoRARequest) -> str | None:
    """Let the engine read an adapter again; why it cannot, if it says so in a sentence of ours."""
    try:
        await engine.add_lora(LoRARequest(loaded.lora_name, loaded.lora_int_id, loaded.lora_path, load_inplace=True))
    except Exception as error:  # a worker's comes as text
        if sentence := SENTENCE.search(str(error)):
            return sentence[0]
        raise
    return None


def stamps(models: Any) -> dict[int, Stamp | None]:
    """The stamps of what is served, by the adapters' numbers; None for adapters of vLLM's own kinds."""
    return cast(dict[int, Stamp | None], models.__dict__.setdefault("mos_stamps", {}))


async def note(models: Any, loaded: LoRARequest, found: Found, replaces: bool) -> ErrorResponse | None:
    """Note what is served now. If it `replaces` other weights under the same number, drop their prefixes before.

    If that fails, the earlier stamp stays, so that the next request tries it again.
    """
    kept, number = stamps(models), loaded.lora_int_id
    if (replaces or number in kept) and (error := await forget_prefixes(models, loaded)):
        return error
    kept[number] = found.files
    if len(kept) > len(models.lora_requests) + UNLOADED:  # no number is given twice
        for other in kept.keys() - {each.lora_int_id for each in models.lora_requests.values()}:
            del kept[other]
    return None


async def forget_prefixes(models: Any, loaded: LoRARequest) -> ErrorResponse | None:
    """Drop the prefix cache, also what a connector keeps of it outside of the GPU. Requests that run are computed
    again."""
    try:
        if await models.engine_client.reset_prefix_cache(reset_running_requests=True, reset_connector=True):
            return None
        reason = "the connector refuses"
    except Exception as error:  # the engine's comes as text
        reason = str(error).rstrip(".")
    return create_error_response(
        f"The adapter '{loaded.lora_name}' has new weights, but cached prefixes of the earlier ones cannot be dropped: "
        f"{reason}. Unload it and load it again.",
        "InternalServerError",
        HTTPStatus.INTERNAL_SERVER_ERROR,
    )


def warn_of_base(models: Any, loaded: LoRARequest, found: Found) -> None:
    """Log if an adapter names another base than the one that is served, which may have the same widths.

    It is no error: a base that was dequantized, or copied, has another name.
    """
    served = models.model_config.model
    if isinstance(found.base, str) and found.base and not is_one(found.base, served):
        logger.warning(
            "MoS adapter '%s' was trained on %r and is served on %r. If these are not the same weights, its answers "
            "are wrong.",
            loaded.lora_name,
            found.base,
            served,
        )


def is_one(model: str, other: str) -> bool:
    """Whether two names of models are one, or two paths of one folder."""
    try:
        return os.path.realpath(model) == os.path.realpath(other)
    except ValueError:  # a name that no file system takes
        return False


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
    return Found(True, files, base=config.get("base_model_name_or_path"))


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
    start = f"MoS adapter '{folder_of(request.lora_path)}'"
    if sentence.startswith(start):
        message = f"MoS adapter '{request.lora_name}'{sentence.removeprefix(start)}"
    else:  # a folder that vLLM has downloaded
        message = re.sub(r"^MoS adapter '.*?'", lambda _: f"MoS adapter '{request.lora_name}'", sentence)
    return create_error_response(message, "BadRequestError", HTTPStatus.BAD_REQUEST)
