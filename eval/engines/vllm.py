"""vLLM, on CUDA or CPU: the base model is loaded once, adapters come with the requests, prefixes are cached."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig
from transformers import AutoTokenizer

from eval.benchmarks import cut
from eval.engines import Decoding, Request, private, resolve_dtype
from eval.engines.environment import ALWAYS, cpu_environment, set_environment
from mos_vllm.reading import is_mos, read, read_config

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the sizes vLLM takes


class VllmEngine:
    """The contract of `eval.engines.Engine`.

    model: a checkpoint folder; adapters: the folders to come, LoRA or MoS as it is saved. Their largest rank sets the
    size of vLLM's slots.
    Raises ImportError without vLLM; ValueError for a rank above 512, and for a MoS adapter that is broken.
    """

    def __init__(
        self,
        model: Path,
        adapters: Sequence[Path] = (),
        *,
        dtype: str = "auto",
        max_model_len: int = 4096,
        max_num_seqs: int = 256,
        max_loras: int = 8,
        gpu_memory_utilization: float = 0.9,
        cpu_kv_cache_gib: int = 2,
        cpu_threads: int | None = None,
        name: str = "vllm",
    ) -> None:
        if find_spec("vllm") is None:
            raise ImportError("vLLM is not installed: use engine=hf, or install it (make setup ENGINE=vllm).")
        cpu = not torch.cuda.is_available()
        set_environment(ALWAYS)
        if cpu:
            set_environment(cpu_environment(cpu_kv_cache_gib, cpu_threads))
        from vllm import LLM  # after the environment is set

        self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        native = any(map(holds_mos, adapters))
        with (
            private.without_compiling(),
            private.grouped_lora() if cpu and adapters else nullcontext(),
            private.mos_adapters() if native else nullcontext(),
        ):
            self.llm = LLM(
                model=str(model),
                dtype=cast(Any, resolve_dtype(dtype)),
                max_model_len=max_model_len,
                max_num_seqs=max_num_seqs,
                gpu_memory_utilization=gpu_memory_utilization,
                enable_prefix_caching=True,
                enforce_eager=cpu,  # compiling for the CPU takes longer than it saves
                generation_config="vllm",  # the checkpoint's own sampling defaults are not ours
                logprobs_mode="raw_logits",
                **_lora_settings(adapters, max_loras),
            )
        self.context = private.core(self.llm).model_config.max_model_len
        self.max_num_seqs = max_num_seqs
        self._adapters: dict[Path, int] = {}
        self._request_ids = itertools.count()

    def close(self) -> None:
        """See `eval.engines.Engine`."""
        private.release(self.llm)
        del self.llm

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> Iterator[tuple[int, list[str]]]:
        """See `eval.engines.Engine`."""
        settings = {
            "n": decoding.samples,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "seed": decoding.seed,
            "stop": list(decoding.stops),
        }
        for index, output in self._run(requests, settings, decoding.max_new_tokens):
            # vLLM cuts at the first stop of its list that it finds, which need not be the first in the text
            yield index, [cut(o.text, decoding.stops) for o in output.outputs] if output else [""] * decoding.samples

    def letter_logits(
        self, requests: Sequence[Request], letter_ids: Mapping[str, int]
    ) -> Iterator[tuple[int, dict[str, float]]]:
        """See `eval.engines.Engine`."""
        ids = list(letter_ids.values())
        settings = {"temperature": 0.0, "logprob_token_ids": ids, "logprobs": len(ids)}
        for index, output in self._run(requests, settings, 1):
            logits = output.outputs[0].logprobs[0] if output else {}
            yield index, {letter: logits[token].logprob for letter, token in letter_ids.items() if logits}

    def _run(
        self, requests: Sequence[Request], settings: dict[str, Any], max_new_tokens: int
    ) -> Iterator[tuple[int, Any]]:
        """Finished vLLM outputs with the index of their request; None where the prompt leaves no room."""
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        engine, waiting = private.core(self.llm), self._tokenized(requests)
        running: dict[str, int] = {}
        try:
            while True:
                # Twice what is decoded together. With less the engine runs short of work; with more it searches longer.
                added = list(itertools.islice(waiting, 2 * self.max_num_seqs - len(running)))
                if not added and not running:
                    return
                for index, ids in added:
                    room = min(max_new_tokens, self.context - len(ids))
                    if room < 1:
                        yield index, None
                        continue
                    params = SamplingParams(max_tokens=room, output_kind=RequestOutputKind.FINAL_ONLY, **settings)
                    name, lora = str(next(self._request_ids)), self._lora_request(requests[index].adapter)
                    running[name] = index
                    engine.add_request(name, TokensPrompt(prompt_token_ids=ids), params, lora_request=lora)
                with private.without_compiling():
                    outputs = engine.step()
                for output in outputs:
                    if output.finished:
                        yield running.pop(output.request_id), output
        finally:
            if running:  # the caller stopped early
                engine.abort_request(list(running))

    def _tokenized(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[int]]]:
        """Index and prompt ids of each request. They are made a few hundred at a time: all would fill the memory."""
        for start in range(0, len(requests), self.max_num_seqs):
            prompts = [request.prompt for request in requests[start : start + self.max_num_seqs]]
            yield from enumerate(self.tokenizer(prompts, verbose=False).input_ids, start)

    def _lora_request(self, adapter: Path | None) -> Any:
        from vllm.lora.request import LoRARequest

        if adapter is None:
            return None
        number = self._adapters.setdefault(adapter, len(self._adapters) + 1)
        return LoRARequest(f"adapter-{number}", number, str(adapter))


def holds_mos(folder: Path) -> bool:
    """Whether the adapter in `folder` is MoS, as PEFT saves it."""
    return is_mos(read_config(folder))


def slot_rank(folder: Path) -> int:
    """The rank of the slot that an adapter needs: its r; for MoS also its e, where that is larger.

    Raises ValueError for a MoS adapter that is broken.
    """
    if holds_mos(folder):
        return max(max(pools.rank, pools.equivalent_rank) for pools in read(folder).pools)
    return int(LoraConfig.from_pretrained(str(folder)).r)


def _lora_settings(adapters: Sequence[Path], together: int) -> dict[str, Any]:
    """The arguments of `LLM` for these adapters. Raises ValueError for a rank above 512.

    MoS adapters wait on the host, as LoRA's do: an evaluation changes its adapters rarely, and the GPU's memory is
    better used for the KV cache.
    """
    if not adapters:
        return {}
    rank = max(map(slot_rank, adapters))
    if rank > LORA_RANKS[-1]:
        raise ValueError(f"vLLM takes adapters up to rank {LORA_RANKS[-1]}, not {rank}; use engine=hf.")
    size = next(size for size in LORA_RANKS if size >= rank)
    return {
        "enable_lora": True,
        "max_lora_rank": size,
        "max_loras": min(together, len(adapters)),
        "additional_config": {"mos": {"device_store_gib": 0}},
    }
