"""MoS written out in loops, from its description alone: no code of the package is used."""

import math

import torch


def layer_groups(model, targets):
    """{(path without block numbers, h, o): [module names by block]} over the targeted layers."""
    groups = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in targets:
            parts = ["*" if part.isdigit() else part for part in name.split(".")]
            groups.setdefault((".".join(parts), module.in_features, module.out_features), []).append(name)
    for names in groups.values():
        names.sort(key=lambda name: [int(part) for part in name.split(".") if part.isdigit()])
    return groups


def factor(pool, index):
    """Row j of the result is the concatenation of the shards index[j][0], index[j][1], ..."""
    rows = []
    for row in index:
        rows.append(torch.cat([pool[int(shard)] for shard in row]))
    return torch.stack(rows)


def delta(pool_a, pool_b, index_a, index_b, scales, alpha):
    """The update (o, h): the sum of outer products of columns of B and rows of A, each times its scale."""
    a, b, r = factor(pool_a, index_a), factor(pool_b, index_b), len(index_a)
    update = torch.zeros(b.shape[1], a.shape[1], dtype=a.dtype)
    for i in range(r):
        update = update + alpha / r * scales[i] * torch.outer(b[i], a[i])
    return update


def module_delta(model, targets, state, alpha, module):
    """The update of one targeted layer from the tensors of the adapter file."""
    [names] = [names for names in layer_groups(model, targets).values() if module in names]
    host, own = f"base_model.model.{names[0]}", f"base_model.model.{module}"
    index_a, index_b = state[f"{own}.mos_index"]
    pools = state[f"{host}.mos_A"], state[f"{host}.mos_B"]
    return delta(*pools, index_a, index_b, state[f"{own}.mos_scale"], alpha)


def check_indices(index, block, blocks, e, shards, p, r):
    """What one block's index matrix must be: r - p rows of different public shards, then its own private ones."""
    public = (e - p) * blocks * shards
    assert tuple(index.shape) == (r, shards)
    drawn = [int(i) for row in index[: r - p] for i in row]
    assert all(0 <= i < public for i in drawn)
    assert len(set(drawn)) == len(drawn) == (r - p) * shards
    own = [int(i) for row in index[r - p :] for i in row]
    assert own == list(range(public + block * p * shards, public + (block + 1) * p * shards))


def lora_bound(h):
    """kaiming_uniform with a = sqrt(5) on rows of h: gain / sqrt(fan_in) * sqrt(3)."""
    return math.sqrt(2 / (1 + 5)) * math.sqrt(3 / h)
