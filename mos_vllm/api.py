"""vLLM's API server with MoS adapters: read off the engine's loop first, and refused with a 4xx and a sentence."""

import asyncio
import copy
import functools
import os
import re
import reprlib
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, cast

import vllm.envs as envs
from vllm.entrypoints.openai.models.serving import ErrorResponse, OpenAIServingModels, create_error_response
from vllm.entrypoints.serve.engine.serving import BaseServing
from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest
from vllm.logger import init_logger
from vllm.lora.request import LoRARequest
from vllm.v1.engine.exceptions import EngineDeadError

from mos_vllm.adapter import AdapterError
from mos_vllm.reading import Stamp, folder_of, is_mos, read, read_config, stamp, sub_folder

logger = init_logger("vllm.mos")
UNLOADED = 1000  # notes that are kept beyond those of loaded adapters, so that they are looked through rarely
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
        is_new = request.lora_name not in self.lora_requests
        models = Renumbering(self, request.lora_name) if request.load_inplace else self
        response = await original(models, request, base_model_name)
        if isinstance(response, ErrorResponse):
            sentence = SENTENCE.search(response.error.message)
            return bad_request(sentence[0], request) if sentence else response
        loaded = self.lora_requests[request.lora_name] = models.lora_requests[request.lora_name]
        loaded.load_inplace = False  # it is done; with it, vLLM reads the adapter again in every step
        if is_new:
            warn_of_base(self, loaded, found)
        note(self, loaded, found)
        return response

    return load_lora_adapter


class Renumbering:
    """vLLM's handler of adapters as if it did not have one of them: what it then loads gets a number of its own.

    Under its earlier number, the new weights would meet cached prefixes of the earlier ones.
    """

    def __init__(self, models: Any, name: str) -> None:
        self.models = models
        self.lora_requests = {other: each for other, each in models.lora_requests.items() if other != name}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.models, name)


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


@dataclass
class Noted:
    """The stamp of the files that are served, None for adapters of vLLM's own kinds; and of later files that cannot be
    served the stamp, and why."""

    files: Stamp | None
    refused: Stamp | None = None
    fault: str | None = None


async def rereading(models: Any, loaded: LoRARequest) -> ErrorResponse | None:
    """Read an adapter again if its files have changed; an error if it cannot be served any more.

    Left to vLLM, it would be read within a step once it has left the host's memory: an error would end the engine then,
    and prefixes of the earlier weights would stay.
    """
    if await is_as_noted(models, loaded):
        return None
    async with models.lora_resolver_lock[loaded.lora_name]:  # of many requests at once, one reads it
        if models.lora_requests.get(loaded.lora_name) is not loaded or await is_as_noted(models, loaded):
            return None
        fault = await reread(models, loaded, notes(models)[loaded.lora_int_id])
        if fault is None or loaded.lora_int_id in await models.engine_client.list_loras():
            return None  # while new files cannot be served, the earlier weights are
        return bad_request(fault, loaded)


async def is_as_noted(models: Any, loaded: LoRARequest) -> bool:
    """Whether an adapter's files are those that are served, which only those of MoS adapters need to be."""
    known = notes(models).get(loaded.lora_int_id)
    if known is None or known.files is None:
        return True
    return await asyncio.to_thread(stamp, folder_of(loaded.lora_path)) == known.files


async def reread(models: Any, loaded: LoRARequest, noted: Noted) -> str | None:
    """Serve the weights that an adapter's folder holds now, under a new number; why not, if it cannot be."""
    folder, engine = folder_of(loaded.lora_path), models.engine_client
    now = await asyncio.to_thread(stamp, folder)
    if noted.refused == now:
        return noted.fault
    found = await asyncio.to_thread(inspect, folder, engine.vllm_config.lora_config.max_lora_rank)
    fresh = copy.copy(loaded)
    fresh.lora_int_id = models.lora_id_counter.inc(1)
    fault = found.fault or (None if found.mos else f"MoS adapter '{folder}' is no longer there.")
    fault = fault or await added(engine, fresh)
    if fault:
        noted.refused, noted.fault = now, fault
    else:
        models.lora_requests[loaded.lora_name] = fresh
        note(models, fresh, found)
    return fault


async def added(engine: Any, request: LoRARequest) -> str | None:
    """Let the engine read an adapter; why it cannot."""
    try:
        await engine.add_lora(request)
    except EngineDeadError:
        raise
    except Exception as error:  # a worker's comes as text
        sentence = SENTENCE.search(str(error))
        return sentence[0] if sentence else f"MoS adapter '{folder_of(request.lora_path)}' cannot be read: {error}"
    return None


def notes(models: Any) -> dict[int, Noted]:
    """What is known of the adapters that are served, by their numbers."""
    return cast(dict[int, Noted], models.__dict__.setdefault("mos_notes", {}))


def note(models: Any, loaded: LoRARequest, found: Found) -> None:
    """Note what is served now, and forget what is not, from time to time: no number is given twice."""
    kept = notes(models)
    kept[loaded.lora_int_id] = Noted(found.files)
    if len(kept) > len(models.lora_requests) + UNLOADED:
        for other in kept.keys() - {each.lora_int_id for each in models.lora_requests.values()}:
            del kept[other]


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
