"""The factors of every layer from the file of a saved PRoLoRA adapter."""

from torch import Tensor

from mos.files import by_name
from mos.prolora.config import ProloraConfig
from mos.prolora.layer import assemble
from mos.registration import Factors


def prolora_factors(config: ProloraConfig, state: dict[str, Tensor]) -> Factors:
    """Spread the chunks of every layer over the widths that the file records."""
    names = ("prolora_A", "prolora_B", "prolora_unshared_A", "prolora_unshared_B")
    tensors = [by_name(state, name) for name in names[: 4 if config.unshared_rank else 2]]
    sharing = config.sharing_a, config.sharing_b
    return {
        name: assemble(*(values[name] for values in tensors), sharing=sharing, shape=(int(shape[0]), int(shape[1])))
        for name, shape in by_name(state, "prolora_shape").items()
    }
