"""The two low-rank factors of every layer, from the file of a saved adapter alone: every method's update is B A."""

from collections.abc import Callable
from typing import Any

from peft import VeraConfig
from torch import Tensor

from mos import prolora
from mos.config import MosConfig
from mos.model import layer_type
from mos.prolora import ProloraConfig
from mos.shards import assemble
from mos.tied_lora import TiedLoraConfig

Factors = dict[str, tuple[Tensor, Tensor]]  # module name: A (r, h) and B (o, r)
ROOT = "base_model.model."  # PEFT's prefix of every module in a saved adapter

# Whose output a layer of a Llama-like block reads; the residual stream is as wide as what is added to it.
RESIDUAL = ("o_proj", "down_proj")
READS = dict.fromkeys(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"), RESIDUAL) | {
    "o_proj": ("q_proj",),
    "down_proj": ("gate_proj", "up_proj"),
}


def by_name(state: dict[str, Tensor], parameter: str) -> dict[str, Tensor]:
    """The tensors of a saved adapter called `parameter`, by the name of their module."""
    end = f".{parameter}"
    return {key.removeprefix(ROOT).removesuffix(end): value for key, value in state.items() if key.endswith(end)}


def mos_factors(config: MosConfig, state: dict[str, Tensor]) -> Factors:
    """Assemble A and B of every layer; random scales go into A.

    Raises ValueError if a pool is missing, or if the file does not tell which pool a layer uses: pools of two widths
    under one layer type.
    """
    pools_a, pools_b, scales = (by_name(state, name) for name in ("mos_A", "mos_B", "mos_scale"))
    hosts: dict[str, str] = {}
    for host in pools_a:
        other = hosts.setdefault(layer_type(host), host)
        if other != host:
            raise ValueError(
                f"'{other}' and '{host}' differ in width but not in layer type, so the file does not tell which of "
                "their pools the other layers use. Use peft.convert_to_lora on the loaded model instead."
            )
    indices = by_name(state, "mos_index")
    if missing := sorted(name for name in indices if layer_type(name) not in hosts or name not in scales):
        raise ValueError(f"The MoS file lacks the pools or scales of {missing[0]}: it is not a whole adapter file.")
    factors = {}
    for name, (index_a, index_b) in indices.items():
        a, b = (
            assemble(pools[hosts[layer_type(name)]], i.int()) for pools, i in ((pools_a, index_a), (pools_b, index_b))
        )
        factors[name] = (a * scales[name][:, None]).to(a.dtype), b.T.contiguous()
    return factors


def prolora_factors(config: ProloraConfig, state: dict[str, Tensor]) -> Factors:
    """Spread the chunks of every layer over the widths that the file records."""
    names = ("prolora_A", "prolora_B", "prolora_unshared_A", "prolora_unshared_B")
    tensors = [by_name(state, name) for name in names[: 4 if config.unshared_rank else 2]]
    sharing = config.sharing_a, config.sharing_b
    return {
        name: prolora.assemble(
            *(values[name] for values in tensors), sharing=sharing, shape=(int(shape[0]), int(shape[1]))
        )
        for name, shape in by_name(state, "prolora_shape").items()
    }


def tied_lora_factors(config: TiedLoraConfig, state: dict[str, Tensor]) -> Factors:
    """diag(u) A and diag(v) B of every layer: A is the file's only one, B that of its type, u that of its block."""
    [a] = by_name(state, "tied_lora_A").values()
    b = {last_name(name): value for name, value in by_name(state, "tied_lora_B").items()}
    u = {block(name): value for name, value in by_name(state, "tied_lora_u").items()}
    return {
        name: (u[block(name)][:, None] * a, v[:, None] * b[last_name(name)])
        for name, v in by_name(state, "tied_lora_v").items()
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


def last_name(name: str) -> str:
    return name.rpartition(".")[2]


def block(name: str) -> str:
    return name.rpartition(".")[0]


FACTORS: dict[str, Callable[[Any, dict[str, Tensor]], Factors]] = {
    "MOS": mos_factors,
    "PROLORA": prolora_factors,
    "TIED_LORA": tied_lora_factors,
    "VERA": vera_factors,
}
