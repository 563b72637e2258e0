"""The micro base models: Llamas pretrained on generated text, here or once for all."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from joblib import cpu_count
from omegaconf import DictConfig
from safetensors.torch import load_file, save
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from data_prep import micro, storage
from data_prep.micro.tokenizer import SPECIAL, build
from data_prep.micro.world import World
from scripts.cell import runs
from scripts.cell.shapes import model_config

SHIPPED = Path(micro.__file__).parent / "pretrained"

BYTES = 256  # pieces of the tokenizer that stand for single bytes; generated text needs none of them


def micro_model(model: DictConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The micro base model and its tokenizer: the shipped one where config and text are those it was made from.

    Otherwise it is pretrained here. Raises as `pretrained`.
    """
    weights = shipped(model)
    if not weights.is_file():
        return pretrained(model)
    network, tokenizer = AutoModelForCausalLM.from_config(model_config(model)), micro_tokenizer(model)
    network.load_state_dict(load_file(weights))
    return network, tokenizer


def shipped(model: DictConfig) -> Path:
    """Where the repository has the weights of `model`. The name holds the key, so weights of other text do not fit."""
    return SHIPPED / f"{model.name}-{runs.model_key(model)}.safetensors"


def ship(model: DictConfig) -> Path:
    """Pretrain `model` and put its weights where the repository has them, in place of older ones.

    Raises ValueError if the model is not one that is pretrained here, and as `pretrained`.
    """
    if model.source.kind != "generated":
        raise ValueError(f"model={model.name} is published, not pretrained here; choose micro_7b or micro_13b.")
    network, _ = pretrained(model)
    weights = shipped(model)
    storage.write_bytes(weights, save(network.state_dict()))
    for other in SHIPPED.glob(f"{model.name}-*.safetensors"):
        if other != weights:
            other.unlink()
    return weights


def pretrained(model: DictConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A network of `model.architecture` and its tokenizer, trained on the text of the world `model.source.seed`.

    One machine always gives the same weights, since the number of threads is that of its cores; another machine rounds
    otherwise. Raises ValueError if `model.architecture.vocab_size` is not the tokenizer's.
    """
    source, world, tokenizer = model.source, World(model.source.seed), micro_tokenizer(model)
    with _every_core(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(source.seed)
        network = _scaled(AutoModelForCausalLM.from_config(model_config(model)))
        _fit(network, _batches(world, tokenizer, source), source)
    return network, tokenizer


def micro_tokenizer(model: DictConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of the text that `pretrained` trains on. It needs no network. Raises as `pretrained`."""
    seed = model.source.seed
    tokenizer = build(World(seed).wording(random.Random(f"wording {seed}")))
    if len(tokenizer) != model.architecture.vocab_size:
        raise ValueError(
            f"model.architecture.vocab_size={model.architecture.vocab_size}, but the tokenizer has {len(tokenizer)} "
            "pieces; set vocab_size to that."
        )
    return tokenizer


def _scaled(network: PreTrainedModel) -> PreTrainedModel:
    """Start the layers that write to the residual stream smaller, by 1/sqrt(2L); else copying is learned too late."""
    factor = (2 * network.config.num_hidden_layers) ** -0.5
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(factor)
    return network


@contextmanager
def _every_core() -> Iterator[None]:
    """One thread per core. Where several workers run, each has one thread, but all wait for this model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(cpu_count())
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _fit(network: PreTrainedModel, batches: Iterator[torch.Tensor], source: DictConfig) -> None:
    """Train on next-token prediction: the linear layers of the blocks with Muon, the rest with AdamW."""
    optimizers = _optimizers(network, source)
    schedules = [LambdaLR(o, lambda step: min((step + 1) / 50, 1 - 0.9 * step / source.steps)) for o in optimizers]
    progress = tqdm(range(source.steps), desc="Pretraining", mininterval=2)
    for _ in progress:
        ids = next(batches)  # (b, t)
        loss = network(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        network.zero_grad()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def _optimizers(network: PreTrainedModel, source: DictConfig) -> list[torch.optim.Optimizer]:
    matrices = [weight for name, weight in network.named_parameters() if "proj" in name]
    others = [weight for name, weight in network.named_parameters() if "proj" not in name]
    return [
        torch.optim.Muon(matrices, source.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, source.learning_rate, betas=(0.9, 0.95), weight_decay=0.01),
    ]


def _batches(world: World, tokenizer: PreTrainedTokenizerBase, source: DictConfig) -> Iterator[torch.Tensor]:
    """Endless batches (b, t) of token ids, cut from a stream of documents."""
    stream = _stream(world, tokenizer, source.drills, random.Random(f"pretraining {source.seed}"))
    while True:
        yield torch.tensor([[next(stream) for _ in range(source.length)] for _ in range(source.batch_size)])


def _stream(world: World, tokenizer: PreTrainedTokenizerBase, drills: float, rng: random.Random) -> Iterator[int]:
    while True:
        documents = [f"{world.document(rng)}{tokenizer.eos_token}" for _ in range(500)]
        for ids in tokenizer(documents).input_ids:
            yield from ids
            if rng.random() < drills:
                yield from _drill(len(tokenizer), rng)


def _drill(vocabulary: int, rng: random.Random) -> list[int]:
    """Some random pieces, twice over: to predict the second half the model needs an embedding of every piece."""
    return 2 * rng.choices(range(len(SPECIAL) + BYTES, vocabulary), k=rng.randint(3, 12))
