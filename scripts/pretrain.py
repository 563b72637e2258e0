"""Pretrains a micro base model on generated text; the other stages do the same when it is not there yet.

python -m scripts.pretrain model=micro_7b
"""

import random
from collections.abc import Iterator

import torch
from omegaconf import DictConfig
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, set_seed

from data_prep.micro.tokenizer import SPECIAL, build
from data_prep.micro.world import World
from scripts.errors import entry_point

BYTES = 256  # pieces of the tokenizer that no text of ours needs


def pretrained(model: DictConfig) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """A Llama and its tokenizer, trained on the text of the world `model.source.seed`.

    Deterministic on one machine with one number of threads.
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
    network = LlamaForCausalLM(LlamaConfig(**model.architecture))
    _fit(network, _batches(world, tokenizer, source), source)
    return network, tokenizer


def _fit(network: LlamaForCausalLM, batches: Iterator[torch.Tensor], source: DictConfig) -> None:
    """Next-token prediction: AdamW, linear warm-up, then linear decay to a tenth."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=source.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = LambdaLR(optimizer, lambda step: min((step + 1) / 50, 1 - 0.9 * step / source.steps))
    progress = tqdm(range(source.steps), desc="Pretraining", mininterval=2)
    for _ in progress:
        ids = next(batches)  # (b, t)
        loss = network(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}")


def _batches(world: World, tokenizer: PreTrainedTokenizerBase, source: DictConfig) -> Iterator[torch.Tensor]:
    """Batches (b, t) of documents one after the other; a tenth of the rows are drills."""
    stream = _stream(world, tokenizer, random.Random(f"pretraining {source.seed}"))
    drills = round(source.batch_size * source.drills)
    while True:
        rows = [[next(stream) for _ in range(source.length)] for _ in range(source.batch_size - drills)]
        yield torch.tensor(rows + [_drill(len(tokenizer), source.length) for _ in range(drills)])


def _stream(world: World, tokenizer: PreTrainedTokenizerBase, rng: random.Random) -> Iterator[int]:
    while True:
        documents = [f"{world.document(rng)}{tokenizer.eos_token}" for _ in range(500)]
        for ids in tokenizer(documents).input_ids:
            yield from ids


def _drill(vocabulary: int, length: int) -> list[int]:
    """Random pieces, repeated: every piece gets an embedding, and copying is learned, whatever the text says."""
    pieces: list[int] = []
    while len(pieces) < length:
        part = torch.randint(len(SPECIAL) + BYTES, vocabulary, (int(torch.randint(3, 12, ())),)).tolist()
        pieces += part + part
    return pieces[:length]


@entry_point
def main(cfg: DictConfig) -> None:
    from scripts.base_model import checkpoint  # which calls `pretrained`

    print(checkpoint(cfg.model, cfg.cache_dir))


if __name__ == "__main__":
    main()
