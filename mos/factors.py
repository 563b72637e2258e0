"""The factors of every layer from the file of a saved MoS adapter."""

from typing import cast

from torch import Tensor

from mos.config import MosConfig
from mos.files import by_name, check_index, check_reach
from mos.names import layer_type
from mos.registration import Factors
from mos.shards import assemble


def mos_factors(config: MosConfig, state: dict[str, Tensor]) -> Factors:
    """Assemble A and B of every layer; random scales go into A.

    Raises ValueError for a file that PEFT refuses too: a pool is missing, or indices name shards that are not there. So
    it does if the file does not tell which pool a layer uses: pools of two widths under one layer type.
    """
    pools, scales = {side: by_name(state, f"mos_{side}") for side in "AB"}, by_name(state, "mos_scale")
    hosts: dict[str, str] = {}
    for host in pools["A"]:
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
    for name, index in indices.items():
        check_index(f"{name}.mos_index", index)
        host = hosts[layer_type(name)]
        a, b = (factor(f"{host}.mos_{side}", pools[side].get(host), i) for side, i in zip("AB", index, strict=True))
        factors[name] = (a * scales[name][:, None]).to(a.dtype), b.T.contiguous()
    return factors


def factor(name: str, pool: Tensor | None, index: Tensor) -> Tensor:
    """The vectors (r, l * s) that an index (r, l) picks from the pool (n, s) called `name` in the file."""
    check_reach(name, pool, int(index.max()))
    return assemble(cast(Tensor, pool), index.int())
