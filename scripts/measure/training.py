"""Time and memory of MoS against PEFT's LoRA of the same rank, as ratios MoS / LoRA."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import accumulate
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import mos
from mos.common.model import LINEAR_LAYERS
from scripts.cell.base_model import in_training_layout

METHODS = ("lora", "mos")
COLUMNS = (
    "training step",
    "its memory",
    "prefill",
    "decode",
    "prefill, kept factors",
    "decode, kept factors",
    "prefill, merged",
    "loading",
)
BUDGET = 8  # trainable parameters of MoS: those of LoRA at this rank
SECONDS = 3.0  # for the pairs of runs of one cell
FEWEST = 4  # pairs
NF4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "float32"}
LLAMA_7B = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
LLAMA_70B = LlamaConfig(
    hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8
)


class Size(NamedTuple):
    """What a row of the table measures; `hidden` is a multiple of 64, and so every l up to 64 divides all widths."""

    hidden: int
    batch: int
    length: int
    shards: int
    blocks: int

    @property
    def rank(self) -> int:
        """As `BUDGET` and one private rank allow: 16, but 8 for a single block, which has nobody to share with."""
        return min(2 * BUDGET, 1 + (BUDGET - 1) * self.blocks)


GRID = (  # the first, others that differ from it in one respect, and one in all; fewer blocks where they are large
    Size(768, 4, 128, 4, blocks=8),
    Size(2048, 4, 128, 4, blocks=4),
    Size(4096, 4, 128, 4, blocks=3),
    Size(768, 1, 128, 4, blocks=8),
    Size(768, 16, 512, 4, blocks=4),
    Size(768, 4, 128, 1, blocks=8),
    Size(768, 4, 128, 64, blocks=8),
    Size(4096, 4, 512, 64, blocks=1),
)


class Ratio(NamedTuple):
    """A median of ratios MoS / LoRA with its 95% interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


def measure(base: str, size: Size, folder: Path) -> list[str]:
    """The cells of one size, in the order of `COLUMNS`; `folder` is for base model and adapters."""
    make_base(base, size, folder)
    memory = peak_memory("mos", size, folder) / peak_memory("lora", size, folder)
    models = {method: adapted(method, size, folder) for method in METHODS}
    steps = {method: training_step(model, size) for method, model in models.items()}
    training = ratio(steps, patience=5)  # a step is long, and its ratio near the aim
    prefill = {method: prefill_step(model.eval(), size) for method, model in models.items()}
    decode = {method: decode_step(model, size) for method, model in models.items()}
    inference = [ratio(prefill), ratio(decode)]
    with mos.kept_factors(models["mos"]):
        inference += [ratio(prefill), ratio(decode)]
    loading = ratio({method: loading_step(method, model, size, folder) for method, model in models.items()})
    for model in models.values():
        model.merge_adapter()
    return [str(training), f"{memory:.3f}", *map(str, inference), str(ratio(prefill)), str(loading)]


def ratio(steps: dict[str, Callable[[], None]], patience: int = 1) -> Ratio:
    """MoS's time over LoRA's, of as many pairs of runs as fit into `patience` times `SECONDS`, at least `FEWEST`.

    Their number is even, so that as many pairs begin with either. The first run of each is not measured: it is slower.
    """
    for step in steps.values():
        step()
    ratios: list[float] = []
    end = time.perf_counter() + patience * SECONDS
    while time.perf_counter() < end or len(ratios) % 2 or len(ratios) < FEWEST:
        order = METHODS if len(ratios) % 2 else METHODS[::-1]
        times = {method: duration(steps[method]) for method in order}
        ratios.append(times["mos"] / times["lora"])
    return summary(ratios)


def summary(ratios: Sequence[float]) -> Ratio:
    """The median and its interval by order statistics, which assumes no distribution: all of them, if they are few.

    The true median lies below the k-th smallest of n values with the probability of fewer than k heads in n throws.
    """
    n, ordered = len(ratios), sorted(ratios)
    tails = accumulate(math.comb(n, heads) / 2**n for heads in range(n))
    outside = max(sum(tail <= 0.025 for tail in tails) - 1, 0)
    return Ratio(statistics.median(ordered), ordered[outside], ordered[n - 1 - outside])


def duration(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def make_base(base: str, size: Size, folder: Path) -> None:
    """Write a random Llama; quantizing it takes so long on a CPU that it is done once."""
    shapes = LlamaConfig(
        vocab_size=512,
        hidden_size=size.hidden,
        intermediate_size=size.hidden * 11 // 4 // 64 * 64,
        num_hidden_layers=size.blocks,
        num_attention_heads=size.hidden // 64,
        num_key_value_heads=size.hidden // 64,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(shapes).save_pretrained(folder)
    if base == "NF4":
        quantization = BitsAndBytesConfig.from_dict({"load_in_4bit": True} | NF4)
        AutoModelForCausalLM.from_pretrained(folder, quantization_config=quantization).save_pretrained(folder)


def adapted(method: str, size: Size, folder: Path) -> PeftModel:
    """The base model with an adapter of the method."""
    base = in_training_layout(AutoModelForCausalLM.from_pretrained(folder))
    return cast(PeftModel, get_peft_model(base, config(method, size.rank, size.shards)))


def config(method: str, rank: int, shards: int = 4) -> PeftConfig:
    if method == "lora":
        return LoraConfig(r=rank, lora_alpha=16, lora_dropout=0.1, target_modules=LINEAR_LAYERS)
    return mos.MosConfig(
        r=rank, equivalent_rank=BUDGET, shards_per_vector=shards, dropout=0.1, target_modules=LINEAR_LAYERS
    )


def token_ids(size: Size) -> torch.Tensor:
    return torch.randint(512, (size.batch, size.length), generator=torch.Generator().manual_seed(0))


def training_step(model: PeftModel, size: Size) -> Callable[[], None]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = token_ids(size)

    def step() -> None:
        model.train()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def prefill_step(model: PeftModel, size: Size) -> Callable[[], None]:
    """One forward pass over all tokens."""
    ids = token_ids(size)

    @torch.no_grad()
    def step() -> None:
        model(ids)

    return step


@torch.no_grad()
def decode_step(model: PeftModel, size: Size) -> Callable[[], None]:
    """One more token for each row of the batch, with a cache of `length` tokens."""
    ids = token_ids(size)
    cache = model(ids, use_cache=True).past_key_values

    @torch.no_grad()
    def step() -> None:
        model(ids[:, :1], past_key_values=cache)
        cache.crop(size.length)

    return step


def loading_step(method: str, model: PeftModel, size: Size, folder: Path) -> Callable[[], None]:
    """Load an adapter as one more onto its model, and take it out again; a LoRA of MoS's size, for equal bytes."""
    rank = size.rank if method == "mos" else BUDGET
    model.add_adapter(f"{method}-file", config(method, rank, size.shards))
    model.save_pretrained(str(folder), selected_adapters=[f"{method}-file"])
    model.delete_adapter(f"{method}-file")

    def step() -> None:
        model.load_adapter(str(folder / f"{method}-file"), "again")
        model.delete_adapter("again")

    return step


def peak_memory(method: str, size: Size, folder: Path) -> int:
    """The peak resident memory in bytes while a process trains two steps; each method gets a process of its own."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["scripts.bench"])
    with ProcessPoolExecutor(1, context) as process:
        return process.submit(own_peak_memory, method, size, folder).result()


def own_peak_memory(method: str, size: Size, folder: Path) -> int:
    step = training_step(adapted(method, size, folder), size)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the peak of loading (Linux)
    step()
    step()
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    [line] = [line for line in status if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024


def file_size() -> float:
    """Bytes of a saved bfloat16 adapter of LLaMA2-7B, over two for each trainable parameter."""
    base = on_meta(LLAMA_7B)
    for layer in base.modules():
        if isinstance(layer, nn.Linear):  # an adapter of a meta layer would be meta too; these weights take no memory
            layer.weight = nn.Parameter(torch.zeros((), dtype=torch.bfloat16).expand(layer.weight.shape))
    model = get_peft_model(base, config("mos", 2 * BUDGET), autocast_adapter_dtype=False)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        size = (Path(folder) / "adapter_model.safetensors").stat().st_size
    return size / (2 * model.get_nb_trainable_parameters()[0])


def construction(method: str) -> float:
    """Seconds that adding an adapter to 80 blocks of the meta device takes."""
    base = on_meta(LLAMA_70B)
    return duration(lambda: get_peft_model(base, config(method, 2 * BUDGET)))


def on_meta(shapes: LlamaConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return LlamaForCausalLM(shapes)
