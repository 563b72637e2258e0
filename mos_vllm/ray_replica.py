"""One replica of Ray Serve LLM: a vLLM engine, and the adapters that come to it when they are asked for."""

import asyncio
import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any
from weakref import WeakValueDictionary

from fastapi import HTTPException
from filelock import FileLock, Timeout
from ray import serve
from ray.llm._internal.common.models import global_id_manager
from ray.llm._internal.common.utils.cloud_utils import is_remote_path
from ray.llm._internal.common.utils.lora_utils import get_lora_id
from ray.llm._internal.serve.core.configs.llm_config import DiskMultiplexConfig
from ray.llm._internal.serve.utils.lora_serve_utils import LoraModelLoader
from ray.serve.llm import LLMConfig
from ray.serve.llm.deployment import LLMServer

from mos_vllm.api import inspect
from mos_vllm.reading import names_folder, sub_folder

ADAPTERS = "adapters"  # the key of Ray's experimental_configs under which the folder of adapters is
COPIES = "mos-adapters-"  # how the folders begin into which adapters are copied from a bucket
PAUSE = 0.2  # seconds between two looks at the engine

logger = logging.getLogger("ray.serve")


class EngineGone(Exception):
    """A request came to a replica whose engine had died before."""


class FolderLoader(LoraModelLoader):
    """Adapters are read where they lie. Ray asks for one that this replica does not hold, and counts it as held."""

    async def load_model_from_config(self, lora_model_id: str, llm_config: LLMConfig) -> DiskMultiplexConfig:
        """Where an adapter is. Raises HTTPException: 404 if there is none, 400 with a sentence if it is broken."""
        name = get_lora_id(lora_model_id)
        folder = sub_folder(Path(llm_config.experimental_configs[ADAPTERS]), name)
        if folder is None:
            raise HTTPException(404, f"There is no adapter '{name}'.")
        await check(folder, name, llm_config)
        return DiskMultiplexConfig(
            model_id=lora_model_id,
            max_total_tokens=None,
            local_path=str(folder),
            lora_assigned_int_id=global_id_manager.next(),
        )


class BucketLoader(LoraModelLoader):
    """Adapters are copied from a bucket by Ray, to a folder of this replica alone.

    In the folder that Ray takes if it is told none, an adapter of another bucket has the same place if it has the same
    name, and a replica may read what another is writing.
    """

    def __init__(self, **settings: Any) -> None:
        self.copies, self.lock = own_folder()
        super().__init__(self.copies.name, **settings)

    async def load_model_from_config(self, lora_model_id: str, llm_config: LLMConfig) -> DiskMultiplexConfig:
        """Where the copy of an adapter is. Raises HTTPException as `FolderLoader` does."""
        name = get_lora_id(lora_model_id)
        if not names_folder(name):
            raise HTTPException(404, f"There is no adapter '{name}'.")
        copy = await super().load_model_from_config(lora_model_id, llm_config)
        try:
            await check(Path(copy.local_path), name, llm_config)
        except HTTPException:
            del self.disk_cache[lora_model_id]  # so that it is copied again
            raise
        return copy


def own_folder() -> tuple[TemporaryDirectory[str], FileLock]:
    """A folder of this process alone under `TMPDIR`, and the lock that says so while both are kept.

    A killed process leaves its folder, which nobody locks any more, and the next one removes it.
    """
    place = Path(gettempdir())
    with FileLock(place / f"{COPIES}{os.getuid()}.lock"):  # so that no folder is seen before it is locked
        for lock in place.glob(f"{COPIES}*/lock"):
            with suppress(Timeout), FileLock(lock).acquire(blocking=False):
                shutil.rmtree(lock.parent, ignore_errors=True)
        folder = TemporaryDirectory(prefix=COPIES)
        own = FileLock(Path(folder.name) / "lock")
        own.acquire()
    return folder, own


async def check(folder: Path, name: str, llm_config: LLMConfig) -> None:
    """Raise HTTPException 400 with a sentence if an adapter is broken, else note in the log that it comes here."""
    found = await asyncio.to_thread(inspect, folder, llm_config.engine_kwargs["max_lora_rank"])
    if found.fault:
        raise HTTPException(400, found.fault.replace(str(folder), name))
    logger.info("Adapter %s comes to this replica.", name)


class AdapterServer(LLMServer):
    """Ray's server of one engine, which takes a folder of adapters and ends when its engine has."""

    def _init_multiplex_loader(self, model_downloader_cls: type[LoraModelLoader] | None = None) -> None:
        """Called by Ray before the engine starts."""
        self.loading: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        bucket = is_remote_path(self._llm_config.experimental_configs[ADAPTERS])
        super()._init_multiplex_loader(BucketLoader if bucket else FolderLoader)

    async def start(self) -> None:
        """Start the engine, and a watch over it."""
        await super().start()
        self.watch = asyncio.create_task(self.end_with_engine())

    @property
    def engine_died(self) -> bool:
        """Whether vLLM has noticed that its engine, or a worker of it, has died."""
        engine: Any = self.engine
        return bool(engine._engine_client.errored)

    async def end_with_engine(self) -> None:
        """End this process with its engine.

        A replica without an engine fails at once, which looks as if it were free, until three health checks have
        failed.
        """
        while not self.engine_died:
            await asyncio.sleep(PAUSE)
        os._exit(1)

    async def _maybe_resolve_lora_from_multiplex(self) -> None:
        """Called by Ray before each request. Two first requests for one adapter load it once.

        Raises EngineGone if the engine has died; HTTPException as the loader, and 400 if vLLM refuses the adapter.
        """
        if self.engine_died:
            raise EngineGone
        name = serve.get_multiplexed_model_id()
        if not name:
            return
        async with self.loading.setdefault(name, asyncio.Lock()):
            try:
                await super()._maybe_resolve_lora_from_multiplex()
            except ValueError as error:
                raise HTTPException(400, str(error)) from error
