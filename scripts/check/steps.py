"""Training steps of a random Llama with LLaMA2-7B's widths and two blocks: seconds, and memory against the plan."""

import gc
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, VeraConfig, get_peft_model, prepare_model_for_kbit_training
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

import mos
from scripts.check.walk import LeftOut

GIB = 2**30
BLOCKS = 2
WIDE = LlamaConfig(  # LLaMA2-7B with two blocks
    vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=BLOCKS, num_attention_heads=32
)
NARROW = LlamaConfig(  # the same code where there is no GPU: a second a step
    vocab_size=500, hidden_size=128, intermediate_size=256, num_hidden_layers=BLOCKS, num_attention_heads=4
)
COLD, TIMED = 2, 5  # steps that are not measured, and that are
TOLERANCE = 1.3  # measured memory over the plan's, above which the plan is wrong


@dataclass(frozen=True)
class Step:
    """A training step of one method, with or without checkpointing, on `batch` x `length` tokens."""

    method: str
    config: PeftConfig
    checkpointing: bool
    batch: int
    length: int
    seconds: float = 0.0
    memory: float = 0.0  # bytes, at most
    planned: float | None = None  # bytes by the plan; None where the plan cannot be made
    flops: float | None = None  # of one step, by the plan

    @property
    def name(self) -> str:
        return f"training step, {self.method}{', checkpointing' if self.checkpointing else ''}"

    def report(self, measured: list["Step"]) -> str:
        """Run the step; returns what it took, and appends itself to `measured` if that was on a GPU.

        Raises ValueError if it takes far more memory than the plan says, or if a loss is not a number.
        """
        done = timed(self)
        if not torch.cuda.is_available():
            raise LeftOut(f"runs, at a small size: {done.seconds:.2f} s; there is no GPU to measure")
        measured.append(done)
        took = f"{done.seconds:.3f} s, {done.memory / GIB:.1f} GiB"
        if done.planned is None:
            return f"{took}; the plan needs hydra-core, which is not installed"
        ratio = done.memory / done.planned
        if ratio > TOLERANCE:
            raise ValueError(
                f"{took} instead of the plan's {done.planned / GIB:.1f} GiB: do not trust `make plan` on memory here; "
                "lower trainer.micro_batch_size, and report this line."
            )
        return f"{took}, {ratio:.2f} times the plan's"


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
    batch, length = (16, 512) if torch.cuda.is_available() else (2, 64)
    for method, config in configs.items():
        for checkpointing in (True, False):
            yield Step(method, config, checkpointing, batch, length)


def timed(step: Step) -> Step:
    """The step with the median of its seconds, its peak memory, and what the plan says of both.

    Raises ValueError for a loss that is not a number.
    """
    gc.collect()
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    base = random_base()
    planned = _planned(base, step)
    model = _adapted(base, step)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(0, base.config.vocab_size, (step.batch, step.length), device=model.device)
    seconds = [_one(model, optimizer, ids) for _ in range(COLD + TIMED)][COLD:]
    memory = torch.cuda.max_memory_allocated() if cuda else 0
    return replace(step, seconds=statistics.median(seconds), memory=float(memory), **planned)


def random_base() -> Any:
    """The random Llama, in 4 bits where bitsandbytes is installed, else in 16."""
    cuda = torch.cuda.is_available()
    torch.manual_seed(0)
    with torch.device("cuda" if cuda else "cpu"):
        network: Any = LlamaForCausalLM(WIDE if cuda else NARROW).to(torch.bfloat16)
    if find_spec("bitsandbytes") is None:
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
            folder, quantization_config=quantization, dtype=torch.bfloat16, device_map={"": "cuda:0" if cuda else "cpu"}
        )


def _adapted(base: Any, step: Step) -> Any:
    prepared = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    model = get_peft_model(prepared, step.config)
    if step.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def _one(model: Any, optimizer: torch.optim.Optimizer, ids: torch.Tensor) -> float:
    """The seconds of one step. Raises ValueError if its loss is not a number."""
    started = time.perf_counter()
    with torch.autocast(ids.device.type, torch.bfloat16):
        logits = model(input_ids=ids).logits  # (b, t, V)
    loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if not torch.isfinite(loss):  # which also waits for the GPU
        raise ValueError(f"the loss of random weights is {loss.item()}; the kernels of this machine are broken.")
    if ids.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _planned(base: Any, step: Step) -> dict[str, float | None]:
    """Bytes and FLOPs of the step by the formulas of the plan."""
    if find_spec("hydra") is None:
        return {"planned": None, "flops": None}
    from scripts.cell.adapter import linear_layers
    from scripts.cost import formulas
    from scripts.cost.architecture import Adapter, Architecture, grouped

    with torch.device("meta"):
        shapes = LlamaForCausalLM(LlamaConfig(**_sizes(base.config)))
    architecture, layers = Architecture.of(shapes), grouped(linear_layers(shapes).items())
    model = get_peft_model(shapes, step.config, low_cpu_mem_usage=True)
    adapter = Adapter(int(model.get_nb_trainable_parameters()[0]), step.config.r, layers)
    where = {"checkpointing": step.checkpointing}
    memory = formulas.training_memory(
        architecture, adapter, batch=step.batch, length=step.length, double_quantization=True, **where
    )
    flops = formulas.training_flops(architecture, adapter, tokens=step.batch * step.length, length=step.length, **where)
    return {"planned": memory.peak, "flops": flops}


def _sizes(config: LlamaConfig) -> dict[str, int]:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {name: getattr(config, name) for name in names}
