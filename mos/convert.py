"""Adapters saved by the paper's authors (repository Forence1999/MoS) as MoS adapters of this package.

Their trainer leaves two forms: the pools with each layer's index vectors, and per-layer factors assembled from them.
"""

import json
from collections import defaultdict
from pathlib import Path

import torch
from peft.utils import load_peft_weights
from torch import Tensor

from mos.config import MosConfig
from mos.export import check_folders, write_adapter
from mos.files import ROOT, by_name, compact
from mos.names import block_numbers, layer_type
from mos.shards import PoolLayout

Sides = tuple[Tensor, Tensor]  # of A and of B


def convert_upstream(
    adapter_dir: str | Path, out_dir: str | Path, *, equivalent_rank: int, shards_per_vector: int, private_rank: int
) -> None:
    """Write the authors' adapter in `adapter_dir` to the new folder `out_dir` as a MoS adapter with the same update.

    The three settings are those of its training (valid_param_lora_r, num_chunk_per_vec, valid_param_private_r), which
    its config does not hold; r and alpha are read from it. Shards that no block selected are absent from assembled
    factors: they become zero, which changes no update.

    Raises:
        FileNotFoundError, FileExistsError: as `export_lora`.
        ValueError: the tensors contradict the settings.
    """
    adapter_dir, out_dir = Path(adapter_dir), Path(out_dir)
    check_folders(adapter_dir, out_dir)
    original = json.loads((adapter_dir / "adapter_config.json").read_text(encoding="utf-8"))
    state = load_peft_weights(str(adapter_dir), device="cpu")
    config = MosConfig(
        r=original["r"],
        alpha=original["lora_alpha"],
        dropout=original["lora_dropout"],
        equivalent_rank=equivalent_rank,
        shards_per_vector=shards_per_vector,
        private_rank=private_rank,
        target_modules=original["target_modules"],
        base_model_name_or_path=original.get("base_model_name_or_path"),
        task_type=original.get("task_type"),
        inference_mode=True,
    )
    tensors = mos_state(config, state)
    config.random_scaling = any(bool((scale != 1).any()) for scale in by_name(tensors, "mos_scale").values())
    write_adapter(out_dir, config, tensors)


def mos_state(config: MosConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the MoS adapter, by their keys in its file, from those of the authors' file."""
    tensors = {}
    for names in groups(state):
        layout = PoolLayout(len(names), config.equivalent_rank, config.shards_per_vector, config.private_rank, config.r)
        read = indexed if f"{ROOT}{names[0]}.lora_pair_mask" in state else assembled
        pools, indices = read(names, layout, state)
        for side, pool in zip("AB", pools, strict=True):
            tensors[f"{ROOT}{names[0]}.mos_{side}"] = pool.contiguous()
        for name in names:
            tensors[f"{ROOT}{name}.mos_index"] = compact(indices[name].int())
            tensors[f"{ROOT}{name}.mos_scale"] = scales(name, layout, state)
    return tensors


def groups(state: dict[str, Tensor]) -> list[list[str]]:
    """The adapted modules of each layer type, in the order of their blocks."""
    found = defaultdict(list)
    for name in by_name(state, "lora_A.weight"):
        found[layer_type(name)].append(name)
    return [sorted(names, key=block_numbers) for names in found.values()]


def scales(name: str, layout: PoolLayout, state: dict[str, Tensor]) -> Tensor:
    """The authors scale vectors by a frozen pair of reciprocals, of which assembled factors hold the product."""
    vectors = [state.get(f"{ROOT}{name}.lora_A_{kind}") for kind in ("vec", "anti_vec")]
    scale = torch.ones(layout.rank)
    for vector in vectors:
        scale = scale if vector is None else scale * vector.float()
    return scale


def indexed(names: list[str], layout: PoolLayout, state: dict[str, Tensor]) -> tuple[Sides, dict[str, Tensor]]:
    """Pools as they are: A (n, h/l), B (o/l, n); index vectors (r*l,), row after row."""
    pools = state[f"{ROOT}{names[0]}.lora_A.weight"], state[f"{ROOT}{names[0]}.lora_B.weight"].T
    if {len(pool) for pool in pools} != {layout.size}:
        raise ValueError(
            f"'{names[0]}' has pools of {len(pools[0])} and {len(pools[1])} shards over {layout.blocks} blocks, but "
            f"equivalent_rank={layout.equivalent_rank} and shards_per_vector={layout.shards_per_vector} make "
            f"{layout.size}. Give the values the adapter was trained with."
        )
    shape = layout.rank, layout.shards_per_vector
    keys = ("lora_pair_mask", "lora_pair_mask_B")
    return pools, {
        name: torch.stack([state[f"{ROOT}{name}.{key}"].view(shape) for key in keys])  # (r*l,) -> (2, r, l)
        for name in names
    }


def assembled(names: list[str], layout: PoolLayout, state: dict[str, Tensor]) -> tuple[Sides, dict[str, Tensor]]:
    """Take factors A (r, h) and B (o, r) apart into shards, and equal public ones together again."""
    factors_a = {name: state[f"{ROOT}{name}.lora_A.weight"] for name in names}
    factors_b = {name: state[f"{ROOT}{name}.lora_B.weight"].T for name in names}
    (pool_a, index_a), (pool_b, index_b) = (take_apart(factors, layout) for factors in (factors_a, factors_b))
    return (pool_a, pool_b), {name: torch.stack([index_a[name], index_b[name]]) for name in names}


def take_apart(factors: dict[str, Tensor], layout: PoolLayout) -> tuple[Tensor, dict[str, Tensor]]:
    """One pool (n, s) and each block's index (r, l) into it, from the blocks' vectors (r, l*s).

    Raises ValueError if the widths do not divide, or if the blocks hold more different shards than a pool has room for.
    """
    shards = layout.shards_per_vector
    first, sample = next(iter(factors.items()))
    if sample.shape[0] != layout.rank or sample.shape[1] % shards:
        raise ValueError(
            f"'{first}' has {sample.shape[0]} vectors of width {sample.shape[1]}, which does not fit r={layout.rank} "
            f"and shards_per_vector={shards}. Give the values the adapter was trained with."
        )
    pool = sample.new_zeros(layout.size, sample.shape[1] // shards)
    known: dict[bytes, int] = {}
    indices = {}
    for block, (name, factor) in enumerate(factors.items()):
        rows = factor.reshape(-1, pool.shape[1])  # (r, l*s) -> (r*l, s)
        own = layout.private(block)
        public = [known.setdefault(fingerprint(row), len(known)) for row in rows[: len(rows) - len(own)]]
        if len(known) > layout.public:
            raise ValueError(
                f"'{name}' and the blocks before it hold more than {layout.public} different public shards, the room "
                f"that equivalent_rank={layout.equivalent_rank}, private_rank={layout.private_rank} and "
                f"shards_per_vector={shards} make. Give the values the adapter was trained with."
            )
        index = torch.cat([torch.tensor(public, dtype=torch.long), own])
        pool[index] = rows
        indices[name] = index.view(-1, shards)  # (r*l,) -> (r, l)
    return pool, indices


def fingerprint(row: Tensor) -> bytes:
    """The bits of a shard: equal for equal shards."""
    return row.contiguous().view(torch.uint8).numpy().tobytes()
