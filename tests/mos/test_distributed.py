"""Two gloo processes against one: the same gradients, or a refusal."""

import os
import socket
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from peft import get_peft_model
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM

from mos import MosConfig

pytestmark = pytest.mark.slow
IDS = torch.arange(32).view(4, 8)
SIZES = {"hidden_size": 32, "intermediate_size": 44, "num_hidden_layers": 3, "num_attention_heads": 4}


def build(use_reentrant=None):
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **SIZES))
    model = get_peft_model(base, MosConfig(r=3, init_weights=False)).train()
    if use_reentrant is not None:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    return model


def full(gradient):
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient


def gradients(model):
    return {name: full(p.grad) for name, p in model.named_parameters() if p.requires_grad}


def ddp(use_reentrant, static_graph):
    model = build(use_reentrant)
    return model, DistributedDataParallel(model, static_graph=static_graph)


def fsdp(blocks):
    model = build()
    for block in model.get_base_model().model.layers if blocks else ():
        fully_shard(block)
    fully_shard(model)
    return model, model


CASES = {  # name: (how to build and wrap, its arguments, why training is refused)
    "DDP": (ddp, (None, False), None),
    "DDP, checkpointing without reentrance": (ddp, (False, False), None),
    "DDP, reentrant checkpointing, static graph": (ddp, (True, True), None),
    "DDP, reentrant checkpointing": (ddp, (True, False), "DDP with reentrant gradient checkpointing"),
    "FSDP2 of the whole model": (fsdp, (False,), None),
    # torch refuses it, and names the remedy: fully_shard([block, block, ...])
    "FSDP2 of each block": (fsdp, (True,), "is shared with a parameter already managed by another FSDP group"),
}


def work(rank, port):
    """All cases in one pair of processes, as starting one takes far longer than a case."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    alone = build()
    alone(IDS, labels=IDS).loss.backward()
    own = IDS[2 * rank : 2 * rank + 2]
    for name, (make, arguments, refusal) in CASES.items():
        model, wrapped = make(*arguments)
        with pytest.raises((RuntimeError, ValueError), match=refusal) if refusal else nullcontext():
            wrapped(own, labels=own).loss.backward()
        for parameter, expected in {} if refusal else gradients(alone).items():
            actual = gradients(model)[parameter]
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-7, msg=f"{name}: {parameter}")
        dist.barrier()
    dist.destroy_process_group()


def test_two_processes_train_as_one_or_refuse():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (port,), nprocs=2)
