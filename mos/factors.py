"""The factors of every layer from the file of a saved MoS adapter."""

from torch import Tensor

from mos.config import MosConfig
from mos.files import by_name
from mos.names import layer_type
from mos.registration import Factors
from mos.shards import assemble


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
