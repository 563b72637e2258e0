"""One vLLM in a process of its own, and what the serving bench asks of it. Nothing is imported before it has to be."""

import copy
import ctypes
import itertools
import mmap
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Concatenate, NamedTuple, ParamSpec, Self, TypeVar

import numpy as np

from scripts.cell.process import worker_pool

P = ParamSpec("P")
T = TypeVar("T")
RETRIES = 100  # of taking a file out of the system's cache, 0.01 s apart
SHORT = 16  # tokens of a prompt where the time of a single step is measured


class Settings(NamedTuple):
    """plugin: mos_vllm, or vLLM alone; on_host: max_cpu_loras; preload: a folder that is read at start"""

    model: Path
    plugin: bool
    slots: int
    rank: int
    on_host: int
    preload: Path | None = None


@dataclass
class Served:
    """The engine in its own process. numbers: of adapters, by folder"""

    llm: Any
    numbers: dict[Path, int] = field(default_factory=dict)
    unused: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def engine(self) -> Any:
        return self.llm.llm_engine

    @property
    def worker(self) -> Any:
        """vLLM's worker manager of adapters."""
        return self.engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner.lora_manager

    def adapter(self, folder: Path | None) -> Any:
        """vLLM's request for an adapter, which has the same number each time."""
        from vllm.lora.request import LoRARequest

        if folder is None:
            return None
        number = self.numbers[folder] = self.numbers.get(folder) or next(self.unused)
        return LoRARequest(str(number), number, str(folder))


class Engine:
    """The handle on that process. Engines answer in turns, so that one alone computes."""

    def __init__(self, settings: Settings) -> None:
        self._process = worker_pool(1)
        self._process.submit(_start, settings).result()

    def __enter__(self) -> Self:
        return self

    def ask(self, task: Callable[Concatenate[Served, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of `task(served, ...)` in the engine's process."""
        return self._process.submit(_ask, task, args, kwargs).result()

    def __exit__(self, *exception: object) -> None:
        self._process.shutdown()


_served: list[Served] = []  # the one of this process


def _start(settings: Settings) -> None:
    os.environ["VLLM_PLUGINS"] = ""  # what is installed counts for nothing; the plugin is put in place here
    import torch

    torch._dynamo.config.disable = True
    if settings.plugin:
        import mos_vllm

        mos_vllm.register()
    from vllm import LLM

    llm = LLM(
        str(settings.model), skip_tokenizer_init=True, dtype="float32", max_model_len=128, enforce_eager=True,
        max_num_seqs=settings.slots, enable_prefix_caching=False, generation_config="vllm", enable_lora=True,
        max_lora_rank=settings.rank, max_loras=settings.slots, max_cpu_loras=settings.on_host,
        additional_config={"mos": {"preload": str(settings.preload)}} if settings.preload else {},
    )  # fmt: skip
    _served.append(Served(llm))


def _ask(task: Any, args: Any, kwargs: Any) -> Any:
    return task(_served[0], *args, **kwargs)


def sampling(tokens: int) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=0, max_tokens=tokens, detokenize=False, ignore_eos=True, output_kind=RequestOutputKind.DELTA
    )


def prompts(seed: int, count: int, tokens: int) -> Iterator[Any]:
    """Random tokens, the same in each engine."""
    from vllm import TokensPrompt

    ids = np.random.default_rng(seed).integers(3, 500, (count, tokens)).tolist()
    return (TokensPrompt(prompt_token_ids=each) for each in ids)


def hold(served: Served, folders: Sequence[Path]) -> None:
    """Read adapters onto the host, in this order, as `/v1/load_lora_adapter` does."""
    for folder in folders:
        served.engine.add_lora(served.adapter(folder))


def bytes_held(served: Served, folder: Path) -> tuple[int, int]:
    """Bytes of an adapter on the host, and of the indices that it shares with the others of its seed."""
    model = served.worker._load_adapter(served.adapter(folder))
    if hasattr(model, "held"):
        return model.held.memory.nbytes, model.held.indices.numbers.nbytes
    return sum(side.nbytes for layer in model.loras.values() for side in (layer.lora_a, layer.lora_b)), 0


def operations(served: Served, folder: Path) -> int:
    """Tensor-writing operations when an adapter that is on the host is written into a slot."""
    from scripts.measure.operations import Count

    hold(served, [folder])
    manager, number = served.worker._adapter_manager, served.numbers[folder]
    manager.deactivate_adapter(number)
    with Count() as counted:
        manager.activate_adapter(number)
    return counted.operations


def uncache(folder: Path) -> None:
    """Take the files of an adapter out of the system's cache (Linux), which is memory that holds adapters too.

    Raises:
        OSError: the system keeps them in memory, as it does in a tmpfs.
    """
    for path in folder.iterdir():
        for _ in range(RETRIES):
            with path.open("rb") as file:
                os.fdatasync(file.fileno())  # what has not been written yet would stay, as does what is being written
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if not in_memory(path):
                break
            time.sleep(0.01)
        else:
            raise OSError(f"'{folder}' is kept in memory: name a folder on a disk with --cache-dir.")


def try_uncaching(folder: Path) -> None:
    """As `uncache`, with a file of our own, before anything is spent."""
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder) as probe:
        (Path(probe) / "file").write_bytes(b"x")
        uncache(Path(probe))


def in_memory(path: Path) -> bool:
    """Whether any page of a file is in the system's cache (mincore). The question reads none, as a read would."""
    mapped = np.memmap(path, np.uint8, "r")
    pages = np.zeros(-(-mapped.size // mmap.PAGESIZE), np.uint8)
    size = ctypes.c_size_t(mapped.size)
    if ctypes.CDLL(None).mincore(mapped.ctypes.data_as(ctypes.c_void_p), size, pages.ctypes.data_as(ctypes.c_void_p)):
        raise OSError(f"mincore fails for '{path}'.")
    return bool((pages & 1).any())


def into_slot(served: Served, folder: Path) -> float:
    """Seconds from the files of an adapter that the engine does not know, to its factors in a slot."""
    adapter = served.adapter(folder)
    begun = time.perf_counter()
    served.worker.add_adapter(adapter)
    seconds = time.perf_counter() - begun
    forget(served, folder)
    return seconds


def first_token(served: Served, folder: Path) -> float:
    """Seconds from a request for an adapter that the engine does not know, to the first token."""
    [prompt] = prompts(0, 1, SHORT)
    adapter = served.adapter(folder)
    begun = time.perf_counter()
    served.llm.generate([prompt], sampling(1), lora_request=[adapter], use_tqdm=False)
    seconds = time.perf_counter() - begun
    forget(served, folder)
    return seconds


def forget(served: Served, folder: Path) -> None:
    """Take an adapter out of the engine."""
    served.engine.remove_lora(served.numbers.pop(folder))


def step_seconds(served: Served, folders: Sequence[Path], registered: int, steps: int) -> float:
    """The median time of decoding one token with each adapter, of so many `steps`, when `registered` are known.

    Those beside `folders` are names of one adapter's weights: what is measured is vLLM's bookkeeping.
    """
    hold(served, folders)
    manager = served.worker._adapter_manager
    model = served.worker._load_adapter(served.adapter(folders[0]))
    others = range(1_000_000, 1_000_000 + registered - len(folders))
    for number in others:
        other = copy.copy(model)
        other.id = number
        manager.add_adapter(other)
    for number, (folder, prompt) in enumerate(zip(folders, prompts(0, len(folders), SHORT), strict=True)):
        served.engine.add_request(str(number), prompt, sampling(steps + 2), lora_request=served.adapter(folder))
    times = []
    while served.engine.has_unfinished_requests():
        begun = time.perf_counter()
        served.engine.step()
        times.append(time.perf_counter() - begun)
    for number in others:
        manager.remove_adapter(number)
    return sorted(times[-steps:])[steps // 2]


class Streamed(NamedTuple):
    """seconds: of the whole stream; first: from each request to its first token, in the order of the requests"""

    seconds: float
    first: list[float]


def stream(
    served: Served,
    asked: Sequence[Path | None],
    *,
    seed: int,
    prompt: int,
    tokens: int,
    together: int,
    on_disk: bool = False,
) -> Streamed:
    """Answer a request for each of `asked` (None: no adapter); `together` clients, each of which waits for its answer.

    prompt, tokens: of each request and of each answer; on_disk: what the engine does not hold is read from the disk
    """
    engine = served.engine
    sent: dict[str, float] = {}
    first: dict[str, float] = {}
    waiting = iter(enumerate(zip(asked, prompts(seed, len(asked), prompt), strict=True)))
    begun, unfinished = time.perf_counter(), 0
    while True:
        while unfinished < together and (following := next(waiting, None)):
            number, (folder, ids) = following
            if folder and on_disk:
                uncache(folder)
            sent[str(number)] = time.perf_counter()
            engine.add_request(str(number), ids, sampling(tokens), lora_request=served.adapter(folder))
            unfinished += 1
        if not unfinished:
            break
        outputs, now = engine.step(), time.perf_counter()
        for output in outputs:
            first.setdefault(output.request_id, now - sent[output.request_id])
            unfinished -= output.finished
    return Streamed(time.perf_counter() - begun, [first[str(number)] for number in range(len(asked))])
