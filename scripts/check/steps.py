"""Training steps of a random Llama with LLaMA2-7B's widths and two blocks: seconds, and memory against the plan."""

import gc
import statistics
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from peft import LoraConfig, VeraConfig, get_peft_model, prepare_model_for_kbit_training
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

import mos
from scripts.check.walk import LeftOut

GIB = 2**30


def llama(hidden: int, inner: int, heads: int, blocks: int, vocabulary: int = 32000) -> LlamaConfig:
    """The shapes of a Llama; those of LLaMA2 below are the published ones."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
    )


LLAMA2_7B, LLAMA2_13B = llama(4096, 11008, 32, blocks=32), llama(5120, 13824, 40, blocks=40)
WIDE = llama(4096, 11008, 32, blocks=2)
NARROW = llama(128, 256, 4, blocks=2, vocabulary=500)  # the same code where there is no GPU: a second a step
BATCH, LENGTH = 16, 512  # of the paper's finetuning
COLD, TIMED = 2, 5  # steps that are not measured, and that are
TOLERANCE = 1.3  # measured memory over the plan's, above which the plan is wrong


@dataclass(frozen=True)
class Step:
    """A training step of one method, with or without checkpointing, on `batch` x `length` tokens."""

    method: str
    config: Any  # of PEFT
    checkpointing: bool
    batch: int
    length: int
    seconds: float = 0.0
    memory: float = 0.0  # bytes, at most

    @property
    def name(self) -> str:
        """The name of its check."""
        return f"training step, {self.method}{', checkpointing' if self.checkpointing else ''}"

    def report(self, measured: list["Step"]) -> str:
        """Run the step; returns what it took, and appends itself to `measured` if that was on a GPU.

        Raises ValueError if it takes far more memory than the plan says or than there is, or if a loss is not a number.
        """
        done = timed(self)
        if not torch.cuda.is_available():
            raise LeftOut(f"it runs, at a small size ({done.seconds:.2f} s), but there is no GPU to measure")
        measured.append(done)
        return f"{done.seconds:.3f} s, {done.memory / GIB:.1f} GiB{against_plan(done)}"


def against_plan(done: Step) -> str:
    """How the memory that a step took compares with the plan's. Raises ValueError if it is far above."""
    if not quantizes():
        return " (bitsandbytes is not installed: a base in 16 bits, which the plan does not know)"
    planned, _ = plan(WIDE, done)
    if done.memory > TOLERANCE * planned:
        raise ValueError(
            f"{done.seconds:.3f} s, but {done.memory / GIB:.1f} GiB instead of the plan's {planned / GIB:.1f}: do not "
            "trust `make plan` on memory here; lower trainer.micro_batch_size, and report this line."
        )
    return f", {done.memory / planned:.2f} times the plan's"


def steps() -> Iterator[Step]:
    """LoRA 8, MoS 8 and VeRA 256; each with and without checkpointing."""
    shared: dict[str, Any] = {"target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    configs = {
        "LoRA 8": LoraConfig(r=8, lora_dropout=0.1, **shared),
        "MoS 8": mos.MosConfig(
            r=8, equivalent_rank=5, private_rank=1, dropout=0.1, **shared
        ),  # two blocks share little
        "VeRA 256": VeraConfig(r=256, vera_dropout=0.1, **shared),
    }
    batch, length = (BATCH, LENGTH) if torch.cuda.is_available() else (2, 64)
    for method, config in configs.items():
        for checkpointing in (True, False):
            yield Step(method, config, checkpointing, batch, length)


def timed(step: Step) -> Step:
    """The step with the median of its seconds, and its peak memory.

    Raises ValueError for a loss that is not a number, and if the GPU's memory is too small.
    """
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    try:
        seconds = _seconds(step)
        memory = torch.cuda.max_memory_allocated() if cuda else 0
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # they hold the model
        if not isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError("it needs more memory than is free; end what else runs here, or take a larger GPU.") from None
    finally:
        _free_memory()  # what this process keeps, the engine of a later check would miss
    return replace(step, seconds=seconds, memory=float(memory))


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def plan(shapes: LlamaConfig, step: Step) -> tuple[float, float]:
    """Bytes and FLOPs of the step on a Llama of these shapes, by the formulas of `make plan`."""
    from scripts.cell.adapter import linear_layers
    from scripts.cost import formulas
    from scripts.cost.architecture import Adapter, Architecture, grouped

    with torch.device("meta"):
        network = LlamaForCausalLM(shapes)
    architecture, layers = Architecture.of(network), grouped(linear_layers(network).items())
    model = get_peft_model(network, step.config, low_cpu_mem_usage=True)
    adapter = Adapter(int(model.get_nb_trainable_parameters()[0]), step.config.r, layers)
    size: dict[str, Any] = {"length": step.length, "checkpointing": step.checkpointing}
    memory = formulas.training_memory(architecture, adapter, batch=step.batch, double_quantization=True, **size)
    return memory.peak, formulas.training_flops(architecture, adapter, tokens=step.batch * step.length, **size)


def quantizes() -> bool:
    """Whether the base can be put in 4 bits here."""
    return find_spec("bitsandbytes") is not None


def random_base(shapes: LlamaConfig, device: str) -> Any:
    """A random Llama on `device`, in 4 bits where bitsandbytes is installed, else in 16."""
    torch.manual_seed(0)
    with torch.device(device):
        network: Any = LlamaForCausalLM(shapes)
    network = network.to(torch.bfloat16)
    if not quantizes():
        return network
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    with tempfile.TemporaryDirectory() as folder:
        network.save_pretrained(folder)
        del network
        return AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=quantization, dtype=torch.bfloat16, device_map={"": device}
        )


def _adapted(step: Step) -> Any:
    shapes, device = (WIDE, "cuda:0") if torch.cuda.is_available() else (NARROW, "cpu")
    base = prepare_model_for_kbit_training(random_base(shapes, device), use_gradient_checkpointing=False)
    model: Any = get_peft_model(base, step.config)
    if step.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def _seconds(step: Step) -> float:
    model = _adapted(step)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(0, model.config.vocab_size, (step.batch, step.length), device=model.device)
    return statistics.median([_one(model, optimizer, ids) for _ in range(COLD + TIMED)][COLD:])


def _one(model: Any, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> float:
    """The seconds of one step. Raises ValueError if its loss is not a number."""
    began = time.perf_counter()
    with torch.autocast(ids.device.type, torch.bfloat16):
        logits = model(input_ids=ids, use_cache=False).logits  # (b, t, V)
    loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if not torch.isfinite(loss):  # which also waits for the GPU
        raise ValueError(f"the loss of random weights is {loss.item()}; update the driver, or try another GPU.")
    if ids.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began
