"""The settings that every method has."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft.config import PeftConfig
from peft.utils import PeftType

from mos.card import explain_loading


@dataclass
class LowRankConfig(PeftConfig):
    """Rank, scaling, dropout and targets of a method whose update is a product of two low-rank factors.

    Raises ValueError for a dropout out of range, and for settings that contradict each other.
    """

    r: int | None = field(default=8, metadata={"help": "Rank of the update"})
    alpha: float = field(default=16.0, metadata={"help": "The update is scaled by alpha / r"})
    dropout: float = field(default=0.0, metadata={"help": "Dropout on the adapter's input while training"})
    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Names or name endings of the linear layers, or a regular expression"}
    )
    exclude_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Layers to leave out, in the same form"}
    )
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Only these blocks"})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the list of blocks"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules trained and saved in full"})
    bias: str = field(default="none", metadata={"help": "Biases to train: none, all or <method>_only"})
    init_weights: bool = field(default=True, metadata={"help": "True: the update starts at zero; False: at random"})

    base_model_type: str | None = field(
        default=None, metadata={"help": "model_type of the base model, noted when the adapter is added to one"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout} must be in [0, 1).")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(f"layers_pattern={self.layers_pattern!r} needs layers_to_transform as well.")
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError(
                f"layers_to_transform={self.layers_to_transform} cannot be combined with the expression "
                f"target_modules={self.target_modules!r}: give target_modules as a list."
            )

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write the settings, and add to the model card how the adapter is loaded.

        PEFT writes the card first and then calls this in every adapter's folder, so this is where a method can add
        to the card.
        """
        super().save_pretrained(save_directory, **kwargs)
        explain_loading(Path(save_directory), PeftType(self.peft_type).value)

    def require_positive(self, *names: str) -> None:
        """Raises ValueError unless these settings are integers of at least 1."""
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value} must be an integer of at least 1.")
