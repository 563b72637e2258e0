"""A forward pass uses the weights that the model has, whoever wrote them; keeping factors is asked for, and ends."""

import copy
import pickle

import pytest
import torch
import torch.multiprocessing as mp
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from trl.trainer.callbacks import SyncRefModelCallback

from mos import MosConfig, MosLayer, ProloraConfig, TiedLoraConfig, kept_factors
from mos.common.layer import LowRankLayer

CONFIGS = {
    "mos": MosConfig(r=3, init_weights=False),
    "prolora": ProloraConfig(r=4, init_weights=False),
    "tied_lora": TiedLoraConfig(r=4, init_weights=False),
}


@pytest.fixture
def adapted(tiny_llama):
    def build(method="mos"):
        torch.manual_seed(1)
        return get_peft_model(tiny_llama(), copy.deepcopy(CONFIGS[method])).eval()

    return build


def pools(model):
    return [p for p in model.parameters() if p.requires_grad]


def step(model, optimizer):
    for parameter in pools(model):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def fused_optimizer(model):
    step(model, torch.optim.AdamW(pools(model), lr=0.1, fused=True))


def foreach_optimizer(model):
    step(model, torch.optim.SGD(pools(model), lr=0.1, foreach=True))


def compiled_optimizer_write(model):
    """What an optimizer in C++ does: it writes to the memory, past torch (8-bit Adam, CPU Adam of DeepSpeed)."""
    for parameter in pools(model):
        parameter.detach().numpy()[...] *= 2


def data_in_place(model):
    for parameter in pools(model):
        parameter.data.mul_(2)


def data_replaced(model):
    for parameter in pools(model):
        parameter.data = 2 * parameter.data


def average(model):
    """torch's EMA, which walks over all parameters and averages them in one call."""
    other = copy.deepcopy(model)
    data_in_place(other)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    averaged.update_parameters(model)
    averaged.update_parameters(other)
    for own, mean in zip(model.parameters(), averaged.module.parameters(), strict=True):
        own.data.copy_(mean.data)


def sync_of_trl(model):
    other = copy.deepcopy(model)
    data_in_place(other)
    SyncRefModelCallback._sync_target_model(other, model, 0.5)


def zeroth_order(model):
    """MeZO: the same noise is added, and later taken out, through `.data`."""
    torch.manual_seed(3)
    for parameter in pools(model):
        parameter.data += 0.1 * torch.randn_like(parameter)


def foreach(model):
    torch._foreach_mul_([p.data for p in pools(model)], 2.0)


@torch.inference_mode()
def in_inference_mode(model):
    for parameter in pools(model):
        parameter.mul_(2)


def load_state_dict(model):
    model.load_state_dict(
        {name: 2 * p.detach() for name, p in model.named_parameters() if p.requires_grad}, strict=False
    )


def load_adapter(model):
    state = {
        name: 2 * value if value.is_floating_point() and "scale" not in name and "shape" not in name else value
        for name, value in get_peft_model_state_dict(model).items()
    }
    set_peft_model_state_dict(model, state)


def swap_tensors(model):
    for parameter in pools(model):
        torch.utils.swap_tensors(parameter, nn.Parameter(2 * parameter.detach()))


def through_numpy(model):
    for parameter in pools(model):
        torch.from_numpy(parameter.detach().numpy()).add_(0.3)


def vector(model):
    vector = nn.utils.parameters_to_vector(pools(model))
    nn.utils.vector_to_parameters(2 * vector.detach(), pools(model))


WRITERS = (
    fused_optimizer,
    foreach_optimizer,
    compiled_optimizer_write,
    data_in_place,
    data_replaced,
    average,
    sync_of_trl,
    zeroth_order,
    foreach,
    in_inference_mode,
    load_state_dict,
    load_adapter,
    swap_tensors,
    through_numpy,
    vector,
)


def merged_logits(model, ids):
    """What the present weights give, by way of the merged base weights."""
    return copy.deepcopy(model).merge_and_unload()(ids).logits


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("write", WRITERS)
@torch.no_grad()
def test_every_writer_is_seen(adapted, ids, write, method):
    model = adapted(method)
    before = model(ids).logits
    write(model)
    after = model(ids).logits
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, merged_logits(model, ids), rtol=1e-3, atol=1e-4)


def double(shared):
    for tensor in shared:
        tensor.mul_(2)


@pytest.mark.slow  # starts a process
@torch.no_grad()
def test_another_process_that_shares_the_memory_is_seen(adapted, ids):
    model = adapted().share_memory()
    before = model(ids).logits
    other = mp.get_context("spawn").Process(target=double, args=([p.data for p in pools(model)],))
    other.start()
    other.join()
    assert other.exitcode == 0
    assert (model(ids).logits - before).abs().max() > 1e-3
    torch.testing.assert_close(model(ids).logits, merged_logits(model, ids), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_writing_to_indices_and_scales_is_seen(tiny_llama, ids):
    config = MosConfig(r=3, init_weights=False, random_scaling=True, scale_mean=1.0)
    model = get_peft_model(tiny_llama(), config).eval()
    for name in ("mos_index", "mos_scale"):
        before = model(ids).logits
        for layer in model.modules():
            if isinstance(layer, MosLayer):
                buffer = getattr(layer, name)["default"]
                buffer.copy_(buffer.flip(0) if name == "mos_index" else 2 * buffer)
        assert (model(ids).logits - before).abs().max() > 1e-3
        torch.testing.assert_close(model(ids).logits, merged_logits(model, ids), rtol=1e-3, atol=1e-4)


@pytest.fixture
def assembled(monkeypatch):
    """Counts how often a layer asks for its factors."""
    calls = []
    for method in (MosLayer, *LowRankLayer.__subclasses__()):
        if "factors" in vars(method):
            original = method.factors
            monkeypatch.setattr(
                method, "factors", lambda self, adapter, original=original: calls.append(1) or original(self, adapter)
            )
    return calls


def kept(model):
    return [layer for layer in model.modules() if getattr(layer, "kept", None) is not None]


@pytest.mark.parametrize("method", CONFIGS)
@torch.no_grad()
def test_factors_are_kept_where_asked_for(adapted, ids, assembled, method):
    model = adapted(method)
    expected = model(ids).logits
    layers = len(assembled)
    with kept_factors(model):
        for _ in range(3):
            assert torch.equal(model(ids).logits, expected)
    assert len(assembled) == 2 * layers
    assert not kept(model)
    data_in_place(model)
    torch.testing.assert_close(model(ids).logits, merged_logits(model, ids), rtol=1e-3, atol=1e-4)


def test_training_inside_uses_and_leaves_the_present_weights(adapted, ids):
    """Even with an evaluation between backward and the step of the optimizer."""
    model = adapted()
    optimizer = torch.optim.SGD(pools(model), lr=0.5)

    @torch.no_grad()
    def logits():
        return model.eval()(ids).logits

    with kept_factors(model):
        logits()
        for _ in range(2):
            model.train()(ids, labels=ids).loss.backward()
            before = logits()
            optimizer.step()
            optimizer.zero_grad()
            assert (logits() - before).abs().max() > 1e-4
            torch.testing.assert_close(logits(), merged_logits(model, ids), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_leaving_by_an_exception_and_nesting(adapted, ids):
    model = adapted()
    with pytest.raises(KeyError), kept_factors(model):
        model(ids)
        raise KeyError
    assert not kept(model)
    with kept_factors(model):
        with kept_factors(model):
            model(ids)
        assert len(kept(model)) == 21
    assert not kept(model)


@torch.no_grad()
def test_adapters_may_come_and_go_inside(adapted, ids):
    model = adapted()
    with kept_factors(model):
        model(ids)
        for seed in (1, 2):
            model.add_adapter("second", MosConfig(r=3, index_seed=seed, init_weights=False))
            model.set_adapter("second")
            torch.testing.assert_close(model(ids).logits, merged_logits(model, ids), rtol=1e-3, atol=1e-4)
            model.set_adapter("default")
            model.delete_adapter("second")


@torch.no_grad()
def test_autocast_inside(adapted, ids):
    model = adapted()
    with kept_factors(model):
        single = model(ids).logits
        with torch.autocast("cpu", torch.bfloat16):
            assert (model(ids).logits - single).abs().max() < 0.05
        assert torch.equal(model(ids).logits, single)


@torch.no_grad()
def test_what_is_kept_is_neither_copied_nor_pickled_nor_saved(adapted, ids):
    model = adapted()
    keys = model.state_dict().keys()
    with kept_factors(model):
        model(ids)
        assert not kept(copy.deepcopy(model))
        assert not kept(pickle.loads(pickle.dumps(model)))
        assert model.state_dict().keys() == keys
