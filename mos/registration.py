"""Making a method of this package known to PEFT, from outside PEFT."""

from peft.config import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method


def add_peft_type(value: str) -> PeftType:
    """Return `PeftType(value)`, after adding it to the enumeration if PEFT does not have it.

    PEFT and transformers look a method up by `peft_type.value`, in saved configs too, and offer no hook to add one; a
    plain string would fail where `.value` is read. So a real member is entered, as the enumeration itself would do it.
    """
    if value not in PeftType._value2member_map_:
        member = str.__new__(PeftType, value)
        member._name_ = member._value_ = value
        PeftType._member_names_.append(value)
        PeftType._member_map_[value] = member
        PeftType._value2member_map_[value] = member
        type.__setattr__(PeftType, value, member)
    return PeftType(value)


def register(name: str, config_cls: type[PeftConfig], model_cls: type[BaseTuner]) -> None:
    """Register a method under the lower-case `name`; registering the same classes again does nothing.

    The prefix of its parameters is `name + "_"`, because transformers derives it so.

    Raises:
        ValueError: another package has registered a different class under this name.
    """
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(add_peft_type(name.upper()))
    if known is None:
        register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls)
    elif known is not config_cls:
        raise ValueError(
            f"The PEFT method name '{name}' is taken by {known.__module__}.{known.__qualname__}. "
            "Import only one of the two packages, or import this one in a fresh process."
        )
