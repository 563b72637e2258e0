"""Adding Tied LoRA to a model: which layers share what."""

from typing import Any

from torch import nn

from mos.common.model import ATTENTION_INPUTS, LLAMA_LIKE, LowRankModel
from mos.common.private import in_out_features
from mos.tied_lora.config import TiedLoraConfig
from mos.tied_lora.layer import Firsts, TiedLoraLinear


class TiedLoraModel(LowRankModel):
    """Adds Tied LoRA adapters to a model.

    The layer `model.layers.3.self_attn.q_proj` is of the block `model.layers.3.self_attn` and the type `q_proj`.
    """

    prefix = "tied_lora_"
    tuner_layer_cls = TiedLoraLinear
    target_module_mapping = dict.fromkeys(LLAMA_LIKE, ATTENTION_INPUTS)

    def check_targets(self, config: TiedLoraConfig, targets: dict[str, nn.Module]) -> None:
        first: dict[str, tuple[str, int]] = {}
        for name, layer in targets.items():
            h, o = in_out_features(layer)
            for kind, width in (("in", h), (f"out of {name.rpartition('.')[2]}", o)):
                host, expected = first.setdefault(kind, (name, width))
                if width != expected:
                    side = "inputs" if kind == "in" else "outputs"
                    raise ValueError(
                        f"'{name}' has {width} {side}, but '{host}' has {expected}: Tied LoRA ties one factor across "
                        "both. Set target_modules to layers of equal width, such as [q_proj, k_proj, v_proj]."
                    )

    def inject_adapter(self, *args: Any, **kwargs: Any) -> None:
        self._first: dict[str, TiedLoraLinear] = {}  # of the model, by type and by block
        super().inject_adapter(*args, **kwargs)
        self._first.clear()  # layers must stay reachable through the model only, for copies and unloading

    def shared(self, adapter_name: str, key: str, layer: TiedLoraLinear) -> Firsts:
        block, _, kind = key.rpartition(".")
        names = ("model", f"type {kind}", f"block {block}")
        return Firsts(*(self._first.setdefault(name, layer) for name in names))
