"""The factors of every layer from the file of a saved VeRA adapter; the method itself is PEFT's."""

from peft import VeraConfig
from torch import Tensor

from mos.files import by_name, last_name
from mos.registration import Factors

# The layers whose output a layer of a Llama-like block reads. The residual stream is as wide as what is added to it.
RESIDUAL = ("o_proj", "down_proj")
READS = dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), RESIDUAL) | {
    "o_proj": ("q_proj",),
    "down_proj": ("gate_proj", "up_proj"),
}


def vera_factors(config: VeraConfig, state: dict[str, Tensor]) -> Factors:
    """diag(d) A and diag(b) B of every layer, cut from the frozen factors, which are as large as the widest layer.

    Raises ValueError if the file does not hold the frozen factors, or not enough to tell a layer's input width.
    """
    if "base_model.vera_A" not in state:
        raise ValueError("The VeRA adapter holds no frozen factors. Train it with save_projection=True.")
    a, b = state["base_model.vera_A"], state["base_model.vera_B"]
    scales_b, scales_d = by_name(state, "vera_lambda_b"), by_name(state, "vera_lambda_d")
    widths = {name: len(scale) for name, scale in scales_b.items()}
    return {
        name: (d[:, None] * a[:, : input_width(name, widths, a.shape[1])], scales_b[name][:, None] * b[: widths[name]])
        for name, d in scales_d.items()
    }


def input_width(name: str, outputs: dict[str, int], widest: int) -> int:
    """The in-features of a layer of a Llama-like model, of which VeRA's file has only the widest.

    outputs: the out-features of all adapted layers; they are the input widths of the layers that read them
    """
    readers = {READS.get(last_name(other)) for other in outputs}
    sources = READS.get(last_name(name), ())
    if readers == {sources}:  # all read the same
        return widest
    widths = {width for other, width in outputs.items() if last_name(other) in sources}
    if len(widths) != 1:
        raise ValueError(
            f"The VeRA file does not tell the input width of '{name}', which reads the output of "
            f"{' or '.join(sources) or 'an unknown layer'}. Train on that layer too, or use peft.convert_to_lora."
        )
    return widths.pop()
