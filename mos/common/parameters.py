"""The parameters of adapters on a layer, under names by which PEFT's partners find LoRA's.

A parameter of LoRA is called `<layer>.lora_A.<adapter>.weight`. TRL copies an adapter by replacing `.default.` in such
names by `.ref.`, so ours are called `<layer>.mos_A.<adapter>.weight` too. Files leave out the adapter and `weight`.
"""

from typing import Any, cast

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Weight(nn.Module):
    """One parameter, `weight`, that modules of several layers may hold together.

    Sharing follows torch's own convention for tied parameters (those of embeddings, for example): each layer registers
    the same parameter, so it lives as long as one of the layers does. What assigns a new parameter to one of the
    modules (loading, casting) assigns it to all of them. FSDP2 is the exception: it shards every unit on its own.

    tied: all modules that hold the parameter
    """

    weight: nn.Parameter

    def __init__(self, weight: nn.Parameter, tied: "list[Weight] | None" = None) -> None:
        super().__init__()
        self.sharded = False
        self.tied = [] if tied is None else tied
        self.weight = weight
        self.tied.append(self)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "weight" and isinstance(value, nn.Parameter):  # FSDP1 sets views, of each module on its own
            self.sharded = self.sharded or isinstance(value, DTensor)
            for other in () if self.sharded else self.tied:
                other._parameters["weight"] = self._parameters["weight"]

    def twin(self) -> "Weight":
        """Another module that holds the same parameter."""
        return type(self)(self.weight, self.tied)

    def is_torn(self) -> bool:
        """Whether the modules no longer hold one parameter: something has sharded or replaced it in some of them.

        Modules on the meta device do not count: the block that they belong to has been unloaded.
        """
        own = self.weight
        first, last = self.tied[0].weight, self.tied[-1].weight  # what tears them works block by block, so two tell
        if first is own and last is own:
            return False
        return not own.is_meta and any(other is not own and not other.is_meta for other in (first, last))


class AdapterParameters(nn.ParameterDict):
    """Maps the name of an adapter to its parameter, with a `Weight` in between that has the adapter's name."""

    def __init__(self, kind: type[Weight] = Weight) -> None:
        super().__init__()
        self.kind = kind

    def __getitem__(self, adapter: str) -> nn.Parameter:
        return self.module(adapter).weight

    def __setitem__(self, adapter: str, value: Tensor) -> None:
        """Make the tensor the adapter's parameter, here and in every layer that shares it."""
        parameter = value if isinstance(value, nn.Parameter) else nn.Parameter(value)
        if adapter in self:
            self.module(adapter).weight = parameter
        else:
            self._hold(adapter, self.kind(parameter))

    def __delitem__(self, adapter: str) -> None:
        del self._keys[adapter]
        del self._modules[adapter]

    def module(self, adapter: str) -> Weight:
        """The module that holds the adapter's parameter."""
        return cast(Weight, self._modules[adapter])

    def share(self, adapter: str, other: "AdapterParameters") -> None:
        """Hold the parameter that `other` holds."""
        self._hold(adapter, other.module(adapter).twin())

    def _hold(self, adapter: str, module: Weight) -> None:
        self._keys[adapter] = None
        self._modules[adapter] = module  # add_module refuses names such as "keys"
