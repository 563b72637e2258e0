"""Keys of cached prefixes that tell an adapter from an earlier one of the same name and folder.

vLLM gives an adapter that is loaded again a new number, while requests of the earlier number may still run on the
earlier weights. Its keys have the name and the folder alone.
"""

import functools
from typing import Any, cast

from vllm.v1.core import kv_cache_utils


def install() -> None:
    """Wrap the function that names an adapter in the keys; once in a process."""
    module = cast(Any, kv_cache_utils)
    if not hasattr(module._gen_lora_extra_hash_keys, "__wrapped__"):
        module._gen_lora_extra_hash_keys = numbered(module._gen_lora_extra_hash_keys)


def numbered(original: Any) -> Any:
    """`_gen_lora_extra_hash_keys` with the adapter's number behind what it has."""

    @functools.wraps(original)
    def _gen_lora_extra_hash_keys(request: Any) -> list[tuple[Any, ...]]:
        return [(*key, request.lora_request.lora_int_id) for key in original(request)]

    return _gen_lora_extra_hash_keys
