"""Adding MoS to a model: which layers share pools, and who hosts them."""

from typing import Any, cast

import torch
from peft import PeftConfig
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.quantization_utils import get_quantization_kwargs
from torch import Tensor, nn

from mos.common.model import LINEAR_LAYERS, LLAMA_LIKE, LowRankModel, shared
from mos.common.parameters import Weight
from mos.config import MosConfig
from mos.experts import ParamWrapper
from mos.files import check_index, check_reach, compact
from mos.layer import MosLayer, MosLinear, Place
from mos.names import layer_type
from mos.targets import parameters, plan, resolve_all_linear

UNCHOSEN = (
    "The file says nothing of '{name}', which would read shards at random. Leave the layer out by exclude_modules or "
    "layers_to_transform in the adapter's config."
)


class MosModel(LowRankModel):
    """Adds MoS adapters to a model."""

    prefix = "mos_"
    tuner_layer_cls = MosLayer
    target_module_mapping = cast(
        dict[str, list[str]], TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    ) | dict.fromkeys(LLAMA_LIKE, LINEAR_LAYERS)

    def check_targets(self, config: MosConfig, targets: dict[str, nn.Module]) -> None:
        self.places = plan(config, targets, parameters(config, self.model))

    def new_layer(self, target: nn.Module, parameter_name: str | None) -> MosLayer:
        return MosLinear(target, **get_quantization_kwargs(self.model))

    def shared(self, adapter_name: str, key: str, layer: MosLayer) -> Place:
        return self.places[key]

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:
        """As for LoRA: `target_parameters` alone will do where the architecture has no default layers."""
        alone = peft_config.target_parameters and peft_config.target_modules is None
        if alone and model_config["model_type"] not in self.target_module_mapping:
            peft_config.target_modules = set()
        return super()._prepare_adapter_config(peft_config, model_config)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("state_dict") is None:  # whose keys say what is adapted otherwise
            resolve_all_linear(self.mos_config(adapter_name), model)
        self._check_same_parameters(adapter_name)
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        self._take_choice(model, adapter_name)
        self.places.clear()  # layers must stay reachable through the model only, for copies and unloading

    def _take_choice(self, model: nn.Module, adapter: str) -> None:
        """Let an adapter with the settings of one on the model read the same shards, as far as both are on a layer.

        A loaded adapter may read others than its seed draws. TRL adds the adapter "ref" with the settings of "default"
        and copies parameters into it, which indices and scales are not.
        """
        config = self.peft_config[adapter]
        twins = [name for name, other in self.peft_config.items() if name != adapter and other == config]
        for layer in model.modules():
            if isinstance(layer, MosLayer) and adapter in layer.mos_index:
                for other in twins:
                    if other in layer.mos_index and layer.mos_index[other].shape == layer.mos_index[adapter].shape:
                        layer.take_choice(adapter, other, self.mos_config(adapter))

    def mos_config(self, adapter: str) -> MosConfig:
        """The settings of an adapter (`config` is the base model's)."""
        return cast(MosConfig, self.peft_config[adapter])

    def _check_same_parameters(self, adapter: str) -> None:
        """Raises ValueError if another adapter targets other parameters: names in a file depend on their nesting."""
        own = set(self.mos_config(adapter).target_parameters or ())
        for name in self.peft_config:
            theirs = set(self.mos_config(name).target_parameters or ())
            if own and theirs and own != theirs:
                raise ValueError(
                    f"All adapters of a model must target the same set of parameters, but '{adapter}' targets "
                    f"{sorted(own)} and '{name}' {sorted(theirs)}. Give both the same target_parameters."
                )

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if parameter_name and not (isinstance(target, ParamWrapper) and target.parameter_name == parameter_name):
            wrapper = ParamWrapper(target, parameter_name)
            self._replace_module(parent, target_name, wrapper, target)
            target = wrapper
        super()._create_and_replace(peft_config, adapter_name, target, target_name, parent, current_key)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        """PEFT looks for a weight of what a wrapper is replaced by; modules with several parameters have none."""
        if isinstance(child, ParamWrapper):
            setattr(parent, child_name, new_module)
        else:
            super()._replace_module(parent, child_name, new_module, child)

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: Any, unwanted_adapter_names: list[str]
    ) -> dict[str, Tensor]:
        check_pools(layers_with(model, adapter_name), adapter_name)
        state = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        end = f".mos_index.{adapter_name}"
        return {key: compact(value) if key.endswith(end) else value for key, value in state.items()}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        state = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        end = f".mos_index.{adapter_name}"
        return {key: value.round().int() if key.endswith(end) else value for key, value in state.items()}

    @classmethod
    def accept(cls, model: nn.Module, adapter: str, state: dict[str, Tensor]) -> None:
        """The pools of a model that has lost or gained blocks are not of the size that its settings make.

        They are made to fit if the file has the indices of the same layers; if not, loading fails on the shapes.
        """
        groups = {id(each.holder.tied): each for each in shared(model, adapter)}
        pools = {group: next((state[key] for key in each.keys if key in state), None) for group, each in groups.items()}
        last, same = dict.fromkeys(groups, -1), True  # the last shard of each pool that a layer reads
        for name, layer in layers_with(model, adapter).items():
            own = [id(side.module(adapter).tied) for side in (layer.mos_A, layer.mos_B)]
            index = state.get(f"{name}.mos_index.{adapter}")
            if index is None and pools[own[0]] is not None:
                raise ValueError(UNCHOSEN.format(name=name))
            if index is None or index.is_meta:
                continue
            check_index(f"{name}.mos_index", index)
            same = same and index.shape == layer.mos_index[adapter].shape
            last |= {group: max(last[group], int(side.max())) for group, side in zip(own, index, strict=True)}
        for group, pool in pools.items():
            check_reach(groups[group].keys[0], pool, last[group])
            if pool is not None and same:
                fit(groups[group].holder, pool)


def fit(holder: Weight, value: Tensor) -> None:
    """Make room for as many shards as `value` has."""
    if holder.weight.shape != value.shape and holder.weight.shape[1:] == value.shape[1:]:
        empty = holder.weight.new_empty(value.shape)
        holder.weight = nn.Parameter(empty, requires_grad=holder.weight.requires_grad)


def layers_with(model: nn.Module, adapter: str) -> dict[str, MosLayer]:
    """The layers of a model that the adapter is on, by their names."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, MosLayer) and adapter in layer.mos_index
    }


def check_pools(layers: dict[str, MosLayer], adapter: str) -> None:
    """Raises ValueError if layers of one type and width read different pools: a file cannot tell which reads which."""
    first: dict[tuple[str, int, int], tuple[str, MosLayer]] = {}
    for name, layer in layers.items():
        kind = layer_type(name), layer.in_features, layer.out_features
        other, expected = first.setdefault(kind, (name, layer))
        if not reads_same(layer, expected, adapter):
            raise ValueError(
                f"'{name}' and '{other}' read different pools, as when a block was copied on its own, but a file holds "
                "one pair of pools per layer type. Use merge_and_unload, or copy the block before adding the adapter."
            )


def reads_same(layer: MosLayer, other: MosLayer, adapter: str) -> bool:
    """Whether two layers read the same pools; somebody may have replaced those of one of them by other values."""
    for pools, others in ((layer.mos_A, other.mos_A), (layer.mos_B, other.mos_B)):
        one, two = pools.module(adapter), others.module(adapter)
        if one.tied is not two.tied:
            return False
        replaced = one.weight is not two.weight and not (one.sharded or one.weight.is_meta or two.weight.is_meta)
        if replaced and not torch.equal(one.weight, two.weight):
            return False
    return True
