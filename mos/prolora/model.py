"""Adding PRoLoRA to a model."""

from torch import nn

from mos.common.model import LINEAR_LAYERS, LLAMA_LIKE, LowRankModel
from mos.common.private import in_out_features
from mos.prolora.config import ProloraConfig
from mos.prolora.layer import ProloraLinear


class ProloraModel(LowRankModel):
    """Adds PRoLoRA adapters to a model."""

    prefix = "prolora_"
    tuner_layer_cls = ProloraLinear
    target_module_mapping = dict.fromkeys(LLAMA_LIKE, LINEAR_LAYERS)

    def check_targets(self, config: ProloraConfig, targets: dict[str, nn.Module]) -> None:
        for name, layer in targets.items():
            h, o = in_out_features(layer)
            if config.sharing_a > h or config.sharing_b > o:
                raise ValueError(
                    f"'{name}' has {h} inputs and {o} outputs: sharing_a={config.sharing_a} must be at most {h}, and "
                    f"sharing_b={config.sharing_b} at most {o}."
                )
