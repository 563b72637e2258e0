"""Pretrains a micro base model on generated text."""

import os
import random
from collections.abc import Iterator

import torch
from omegaconf import DictConfig
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, set_seed

from data_prep.micro.tokenizer import SPECIAL, build
from data_prep.micro.world import World

BYTES = 256  # pieces of the tokenizer that no text of ours needs


def pretrained(model: DictConfig) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """A Llama and its tokenizer, trained on the text of the world `model.source.seed`.

    Deterministic on one machine: always with as many threads as there are cores.
    Raises ValueError if `model.architecture.vocab_size` is not the tokenizer's.
    """
    source = model.source
    world = World(source.seed)
    tokenizer = build(world.wording(random.Random(f"wording {source.seed}")))
    if len(tokenizer) != model.architecture.vocab_size:
        raise ValueError(
            f"model.architecture.vocab_size={model.architecture.vocab_size}, but the tokenizer has {len(tokenizer)} "
            "pieces; set vocab_size to that."
        )
    set_seed(source.seed)
    network = _scaled(LlamaForCausalLM(LlamaConfig(**model.architecture)))
    _fit(network, _batches(world, tokenizer, source), source)
    return network, tokenizer


def _scaled(network: LlamaForCausalLM) -> LlamaForCausalLM:
    """What the blocks add to the stream starts smaller by the root of its count: else copying is learned too late."""
    factor = (2 * network.config.num_hidden_layers) ** -0.5
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(factor)
    return network


def _fit(network: LlamaForCausalLM, batches: Iterator[torch.Tensor], source: DictConfig) -> None:
    """Next-token prediction: Muon for the linear layers of the blocks, else AdamW; warm-up, then decay to a tenth."""
    matrices = [weight for name, weight in network.named_parameters() if "proj" in name]
    others = [weight for name, weight in network.named_parameters() if "proj" not in name]
    optimizers = [
        torch.optim.Muon(matrices, source.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, source.learning_rate, betas=(0.9, 0.95), weight_decay=0.01),
    ]
    schedules = [LambdaLR(o, lambda step: min((step + 1) / 50, 1 - 0.9 * step / source.steps)) for o in optimizers]
    threads = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # a worker of several has one, but the others wait for this
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
        progress.set_postfix(loss=f"{loss.item():.3f}")
    torch.set_num_threads(threads)


def _batches(world: World, tokenizer: PreTrainedTokenizerBase, source: DictConfig) -> Iterator[torch.Tensor]:
    """Batches (b, t) of documents, one after the other."""
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
    """Random pieces, twice: so that every piece gets an embedding, whatever the text says."""
    return 2 * rng.choices(range(len(SPECIAL) + BYTES, vocabulary), k=rng.randint(3, 12))
