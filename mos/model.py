"""Adding MoS to a model: which layers share pools, and who hosts them."""

from collections import defaultdict
from typing import Any, cast

import torch
from peft import PeftConfig
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn

from mos.common.model import LINEAR_LAYERS, LLAMA_LIKE, LowRankModel
from mos.common.private import in_out_features
from mos.config import MosConfig
from mos.files import compact
from mos.layer import MosLayer, Place
from mos.names import block_numbers, layer_type
from mos.shards import PoolLayout


def plan(config: MosConfig, targets: dict[str, nn.Module]) -> dict[str, Place]:
    """Group the targeted base layers by type and width, and number the blocks of each group.

    Raises ValueError, before anything is changed, for a group whose pools cannot be built with these settings.
    """
    groups = defaultdict(list)
    for name, layer in targets.items():
        groups[layer_type(name), *in_out_features(layer)].append(name)
    places = {}
    for (kind, in_features, out_features), names in groups.items():
        layout = PoolLayout(len(names), config.equivalent_rank, config.shards_per_vector, config.private_rank, config.r)
        layout.check(kind, in_features, out_features)
        names.sort(key=block_numbers)
        places.update({name: Place(name, block, layout, names[0]) for block, name in enumerate(names)})
    return places


class MosModel(LowRankModel):
    """Adds MoS adapters to a model."""

    prefix = "mos_"
    tuner_layer_cls = MosLayer
    target_module_mapping = cast(
        dict[str, list[str]], TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    ) | dict.fromkeys(LLAMA_LIKE, LINEAR_LAYERS)

    def check_targets(self, config: MosConfig, targets: dict[str, nn.Module]) -> None:
        self.places = plan(config, targets)

    def shared(self, adapter_name: str, key: str, layer: MosLayer) -> Place:
        return self.places[key]

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        for place in self.places.values():
            layer = cast(MosLayer, model.get_submodule(place.name))
            layer.mos_host[adapter_name] = cast(MosLayer, model.get_submodule(place.host))

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: Any, unwanted_adapter_names: list[str]
    ) -> dict[str, Tensor]:
        state = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        return {key: compact(value) if ".mos_index." in key else value for key, value in state.items()}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        state = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        return {key: value.to(torch.int32) if ".mos_index." in key else value for key, value in state.items()}
