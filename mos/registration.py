"""The methods of this package: their settings, their model class, and the factors of a saved adapter."""

from collections.abc import Callable
from typing import Any, NamedTuple

from peft.config import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method
from torch import Tensor

from mos.common.private import enter_peft_type, rename_in_transformers

Factors = dict[str, tuple[Tensor, Tensor]]  # module name: A (r, h) and B (o, r)


class Method(NamedTuple):
    """A method whose update is B A.

    factors: reads A and B of every layer from the config and the tensors of a saved adapter
    """

    config: type[PeftConfig]
    model: type[BaseTuner]
    factors: Callable[[Any, dict[str, Tensor]], Factors]


METHODS: dict[str, Method] = {}  # by the name in adapter_config.json: "MOS", ...


def register(
    name: str,
    config: type[PeftConfig],
    model: type[BaseTuner],
    factors: Callable[[Any, dict[str, Tensor]], Factors],
) -> None:
    """Make a method known to PEFT under the lower-case `name`, and its factors to `export_lora`.

    Registering the same classes again changes nothing. The prefix of the method's parameters is `name + "_"`, because
    transformers derives it so.

    Raises:
        ValueError: another package has registered a different class under this name.
    """
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(add_peft_type(name.upper()))
    if known is None:
        register_peft_method(name=name, config_cls=config, model_cls=model)
    elif known is not config:
        raise ValueError(
            f"The PEFT method name '{name}' is taken by {known.__module__}.{known.__qualname__}. "
            "Import only one of the two packages, or import this one in a fresh process."
        )
    METHODS[name.upper()] = Method(config, model, factors)


def read_in_transformers(*parameters: str) -> None:
    """Let transformers' `load_adapter` read files of parameters whose names match these regular expressions.

    A file calls a parameter <layer>.mos_A, a model <layer>.mos_A.<adapter>.weight. transformers inserts the adapter
    by itself, and learns here to add `weight`. PEFT asks the method (`LowRankModel._remove_adapter_name_from_key`).
    """
    rename_in_transformers(rf"(\.(?:{'|'.join(parameters)})\.[^.]+)$", r"\1.weight")


def add_peft_type(value: str) -> PeftType:
    """Return `PeftType(value)`, after adding it to the enumeration if PEFT does not have it.

    PEFT and transformers look a method up by `peft_type.value`, in saved configs too, and offer no hook to add one. A
    plain string would fail where `.value` is read, so a real member is entered.
    """
    if value not in {member.value for member in PeftType}:
        enter_peft_type(value)
    return PeftType(value)
