"""Keys of cached prefixes that tell an adapter from an earlier one of the same name and folder.

vLLM gives an adapter that is loaded again a new number, while requests of the earlier number may still run on the
earlier weights. Its keys have the name and the folder alone.
"""

import functools
import secrets
from typing import Any, cast

from vllm.v1.core import kv_cache_utils


def install() -> None:
    """Wrap the function that names an adapter in the keys; once in a process."""
    module = cast(Any, kv_cache_utils)
    if not hasattr(module._gen_lora_extra_hash_keys, "__wrapped__"):
        module._gen_lora_extra_hash_keys = numbered(module._gen_lora_extra_hash_keys, secrets.token_hex(8))


def numbered(original: Any, start: str) -> Any:
    """`_gen_lora_extra_hash_keys` with the adapter's number behind what it has, and a word of its own for each start.

    Every server counts its adapters from 1, also after a restart, and a store of prefixes may outlive it.
    """

    @functools.wraps(original)
    def _gen_lora_extra_hash_keys(request: Any) -> list[tuple[Any, ...]]:
        return [(*key, request.lora_request.lora_int_id, start) for key in original(request)]

    return _gen_lora_extra_hash_keys
