"""Each private part of another library that mos uses does what mos expects of it (docs/upgrading.md)."""

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig
from peft.utils import PeftType
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.pytorch_utils import Conv1D

from mos.common import private
from mos.common.model import LowRankModel


def test_enter_peft_type():
    private.enter_peft_type("NOT_A_METHOD")
    try:
        assert PeftType("NOT_A_METHOD") is PeftType.NOT_A_METHOD
        assert PeftType.NOT_A_METHOD.value == "NOT_A_METHOD"
        assert PeftType.NOT_A_METHOD in list(PeftType)
    finally:
        type.__delattr__(PeftType, "NOT_A_METHOD")
        PeftType._member_names_.remove("NOT_A_METHOD")
        for members in (PeftType._member_map_, PeftType._value2member_map_):
            del members["NOT_A_METHOD"]


def test_buffer_dict():
    """Named as a buffer under the adapter, saved, left alone by casts if it holds integers."""
    module = nn.Module()
    module.index = private.BufferDict(persistent=True)
    module.index["default"] = torch.arange(3)
    assert module.half().state_dict()["index.default"].dtype == torch.int64
    assert dict(module.named_buffers()).keys() == {"index.default"}


def test_in_out_features():
    assert private.in_out_features(nn.Linear(2, 3)) == (2, 3)
    assert private.in_out_features(Conv1D(3, 2)) == (2, 3)


def test_include_all_linear():
    config = private.include_all_linear(
        LoraConfig(target_modules="all-linear"), nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    )
    assert config.target_modules == {"0"}


def test_in_backward_pass():
    seen = []
    x = torch.ones(1, requires_grad=True)
    y = 2 * x
    y.register_hook(lambda grad: seen.append(private.in_backward_pass()))
    assert not private.in_backward_pass()
    y.backward()
    assert seen == [True]


def test_running_ddp(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        seen = []
        layer = nn.Linear(2, 2)
        layer.register_forward_pre_hook(lambda *_: seen.append(private.running_ddp()))
        parallel = DistributedDataParallel(layer, static_graph=True)
        parallel(torch.ones(1, 2))
        assert seen == [parallel]
        assert seen[0].static_graph
        assert private.running_ddp() is None
    finally:
        torch.distributed.destroy_process_group()


def test_offload_hook():
    layer = nn.Linear(2, 2)
    assert private.offload_hook(layer) is None
    assert not private.is_offloaded(layer)
    cpu_offload(nn.Sequential(layer), torch.device("cpu"))
    assert private.is_offloaded(layer)
    assert private.offload_hook(layer).execution_device == torch.device("cpu")
    assert not private.is_detached_by_peft(layer)
    del layer._hf_hook
    assert private.is_detached_by_peft(layer)


@pytest.mark.parametrize(
    "transform",
    [
        lambda f: torch.func.grad(f)(torch.ones(())),
        lambda f: torch.vmap(f)(torch.ones(2)),
        lambda f: torch.func.jvp(f, (torch.ones(()),), (torch.ones(()),)),
        lambda f: torch.func.functionalize(f)(torch.ones(())),
    ],
)
def test_is_transformed(transform):
    seen = []
    transform(lambda x: seen.append(private.is_transformed()) or 2 * x)
    assert seen == [True]
    assert not private.is_transformed()


def test_is_transformed_in_forward_mode():
    with torch.autograd.forward_ad.dual_level():
        assert private.is_transformed()
    assert not private.is_transformed()


def test_is_partitioned():
    """DeepSpeed is not installed here; it gives each parameter that it partitions an id."""
    parameter = nn.Parameter(torch.ones(1))
    assert not private.is_partitioned(parameter)
    parameter.ds_id = 3
    assert private.is_partitioned(parameter)


def test_rename_in_transformers():
    private.rename_in_transformers("(mos_of_a_test)$", r"\1.weight")
    private.rename_in_transformers("(mos_of_a_test)$", r"\1.weight")
    [renaming] = [r for r in get_checkpoint_conversion_mapping("legacy") if "(mos_of_a_test)$" in r.source_patterns]
    assert renaming.rename_source_key("layer.mos_of_a_test")[0] == "layer.mos_of_a_test.weight"


HOOKS = (
    "_prepare_adapter_config",
    "_check_target_module_exists",
    "_create_and_replace",
    "_replace_module",
    "_remove_adapter_name_from_key",
    "_get_adapter_state_dict",
    "_remap_adapter_state_dict_for_load",
)


@pytest.mark.parametrize("hook", HOOKS)
def test_hooks_of_base_tuner_exist(hook):
    assert any(hook in vars(base) for base in LowRankModel.__mro__ if base.__module__.startswith("peft."))
