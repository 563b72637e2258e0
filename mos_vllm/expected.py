"""What the plugin relies on in vLLM beyond its documented interface, checked in the source before anything is changed.

docs/upgrading.md says what each is used for.
"""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

VERSIONS = "vllm==0.32.* or vllm==0.33.*"

# Module: functions and methods with their first parameters. A method may be inherited from a class of the same module.
SIGNATURES: dict[str, dict[str, tuple[str, ...]]] = {
    "vllm.v1.worker.lora_model_runner_mixin": {
        "LoRAModelRunnerMixin.load_lora_model": ("self", "model", "vllm_config", "device"),
    },
    "vllm.lora.worker_manager": {
        "LRUCacheWorkerLoRAManager.__init__": ("self", "vllm_config", "device", "embedding_modules"),
        "LRUCacheWorkerLoRAManager.create_lora_manager": ("self", "model", "vllm_config"),
        "LRUCacheWorkerLoRAManager._load_adapter": ("self", "lora_request"),
        "LRUCacheWorkerLoRAManager._apply_adapters": ("self", "lora_requests"),
        "LRUCacheWorkerLoRAManager.set_active_adapters": ("self", "requests", "mapping"),
        "LRUCacheWorkerLoRAManager.add_adapter": ("self", "lora_request"),
        "LRUCacheWorkerLoRAManager.remove_adapter": ("self", "adapter_id"),
        "LRUCacheWorkerLoRAManager.remove_all_adapters": ("self",),
    },
    "vllm.lora.model_manager": {
        "LRUCacheLoRAModelManager.activate_adapter": ("self", "lora_id"),
        "LRUCacheLoRAModelManager.deactivate_adapter": ("self", "adapter_id"),
        "LRUCacheLoRAModelManager.pin_adapter": ("self", "lora_id"),
        "LRUCacheLoRAModelManager.remove_all_adapters": ("self",),
        "LRUCacheLoRAModelManager._create_merged_loras_inplace": ("self", "lora_model"),
    },
    "vllm.lora.lora_model": {"LoRAModel.__init__": ("self", "lora_model_id", "rank", "loras")},
    "vllm.lora.layers.base_linear": {"BaseLinearLayerWithLoRA.reset_lora": ("self", "index")},
    "vllm.lora.layers.column_parallel_linear": {
        "ColumnParallelLinearWithLoRA.slice_lora_a": ("self", "lora_a"),
        "ColumnParallelLinearWithLoRA.slice_lora_b": ("self", "lora_b"),
        "MergedQKVParallelLinearWithLoRA.slice_lora_a": ("self", "lora_a"),
        "MergedQKVParallelLinearWithLoRA.slice_lora_b": ("self", "lora_b"),
    },
    "vllm.lora.layers.row_parallel_linear": {
        "RowParallelLinearWithLoRA.slice_lora_a": ("self", "lora_a"),
        "RowParallelLinearWithLoRA.slice_lora_b": ("self", "lora_b"),
    },
    "vllm.lora.utils": {
        "parse_fine_tuned_lora_name": ("name", "weights_mapper"),
        "get_adapter_absolute_path": ("lora_path",),
    },
    "vllm.lora.punica_wrapper.punica_cpu": {
        "PunicaWrapperCPU.add_lora_linear": (
            "self",
            "y",
            "x",
            "lora_a_stacked",
            "lora_b_stacked",
            "scale",
            "output_slices",
        ),
        "PunicaWrapperCPU.add_lora_embedding": ("self", "y", "x", "lora_b_stacked"),
        "PunicaWrapperCPU.add_lora_logits": ("self", "y", "x", "lora_a_stacked", "lora_b_stacked", "scale"),
        "PunicaWrapperCPU.add_shrink": ("self", "y", "x", "lora_a_stacked", "scale"),
        "PunicaWrapperCPU.add_expand": ("self", "y", "x", "lora_b_stacked", "output_slices", "offset_start"),
    },
    "vllm.platforms.cpu": {"CpuPlatform.get_punica_wrapper": ("cls",)},
    "vllm.utils.cache": {
        "LRUCache.get": ("self", "key", "default"),
        "LRUCache.touch": ("self", "key"),
        "LRUCache.remove_oldest": ("self",),
    },
    "vllm.utils.gpu_sync_debug": {"gpu_sync_allowed": ()},
    "vllm.entrypoints.openai.models.serving": {
        "OpenAIServingModels.load_lora_adapter": ("self", "request", "base_model_name"),
        "OpenAIServingModels.resolve_lora": ("self", "lora_name"),
    },
    "vllm.entrypoints.serve.engine.serving": {"BaseServing._check_model": ("self", "request")},
    "vllm.v1.engine.async_llm": {
        "AsyncLLM.add_lora": ("self", "lora_request"),
        "AsyncLLM.list_loras": ("self",),
    },
    "vllm.v1.core.kv_cache_utils": {"_gen_lora_extra_hash_keys": ("request",)},
}
# Module: text that has to occur in it: the attributes that are read or set, and the one name that is rebound.
WORDS: dict[str, tuple[str, ...]] = {
    "vllm.v1.worker.lora_model_runner_mixin": ("self.lora_manager = LRUCacheWorkerLoRAManager(",),
    "vllm.lora.worker_manager": (
        "_manager_cls:",
        "set_adapter_mapping(mapping)",
        "self._adapter_manager = ",
        "self.lora_config",
        "vllm_config=vllm_config",
    ),
    "vllm.lora.model_manager": (
        "self._registered_adapters",
        "self._active_adapters",
        "self.lora_index_to_id",
        "self.lora_slots",
        "self.packed_modules:",
        "self.modules:",
        "self.is_pooling_model",
        "self.punica_wrapper_mapping",
    ),
    "vllm.lora.layers.base_linear": ("self.lora_a_stacked", "self.lora_b_stacked", "self.n_slices", "self.tp_size"),
    "vllm.model_executor.layers.linear": (
        "self.input_size",
        "self.output_size",
        "self.output_sizes",
        "self.total_num_heads",
        "self.total_num_kv_heads",
        "self.head_size",
    ),
    "vllm.entrypoints.openai.models.serving": (
        "self.lora_requests",
        "self.lora_resolver_lock",
        "self.lora_id_counter.inc(1)",
        "self.engine_client",
        "self.model_config",
        "create_error_response",
    ),
    "vllm.v1.core.kv_cache_utils": ("= _gen_lora_extra_hash_keys(request)", '[("lora", '),
}


def installed_source(module: str) -> str:
    """The source of a module of the installed vLLM, read and not imported. Raises OSError where there is none."""
    import vllm

    return (Path(vllm.__path__[0]).parent / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8")


def lacking(source: Callable[[str], str] = installed_source) -> Iterator[str]:
    """What is relied on and not as expected.   vllm.lora.model_manager: activate_adapter(self, lora_id)

    source: gives the text of a module; raises OSError where there is none
    """
    for module in dict.fromkeys([*SIGNATURES, *WORDS]):
        try:
            text = source(module)
        except OSError:
            yield module
            continue
        yield from (f"{module}: {word}" for word in WORDS.get(module, ()) if word not in text)
        wanted = SIGNATURES.get(module, {})
        functions = dict(signatures(ast.parse(text))) if wanted else {}
        for name, first in wanted.items():
            if functions.get(name, ("missing",))[: len(first)] != first:
                yield f"{module}: {name}({', '.join(first)})"


def signatures(tree: ast.Module) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each function, and each method under the name of its class and of the classes that inherit it in this module."""
    methods: dict[str, dict[str, tuple[str, ...]]] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, parameters(node)
        elif isinstance(node, ast.ClassDef):
            bases = [methods.get(ast.unparse(base), {}) for base in node.bases]
            methods[node.name] = {name: given for base in bases for name, given in base.items()}
            methods[node.name] |= {
                part.name: parameters(part)
                for part in node.body
                if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
            }
            yield from ((f"{node.name}.{name}", given) for name, given in methods[node.name].items())


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[str, ...]:
    return tuple(argument.arg for argument in (*function.args.posonlyargs, *function.args.args))
