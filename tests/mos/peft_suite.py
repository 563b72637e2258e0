"""A pytest plugin that puts MosConfig into PEFT's own test files; `test_peft_suite.py` runs it in a process of its own.

PEFT's files run each test over a list of methods. The plugin exchanges these lists for MoS, and keeps only the tests
that then have MoS among their parameters, or that stand in a class named in `HARD_WIRED`.
"""

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

from mos import MosConfig


@dataclass
class SmallMos(MosConfig):
    """MoS with defaults that fit a model of one block with widths like 10 and 20, as most of PEFT's test models are."""

    r: int | None = 2
    shards_per_vector: int = 2


LANGUAGE = [{"r": 2, "shards_per_vector": 4}, {"r": 3, "equivalent_rank": 4, "private_rank": 0, "dropout": 0.05}]
CUSTOM = {
    "MLP expression": ("MLP", {"target_modules": "lin0"}),
    "MLP list": ("MLP", {"target_modules": ["lin0"], "shards_per_vector": 5}),
    "MLP output": ("MLP", {"target_modules": ["lin1"]}),
    "MLP both": ("MLP", {"target_modules": ["lin0", "lin1"]}),
    "MLP saved module": ("MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    "MLP saved target": ("MLP", {"target_modules": ["lin0", "lin1"], "modules_to_save": ["lin1"]}),
    "MLP no private shards": ("MLP", {"target_modules": ["lin0"], "equivalent_rank": 4, "private_rank": 0}),
    "MLP whole vectors": ("MLP", {"target_modules": ["lin0"], "shards_per_vector": 1}),
    "MLP pairs": ("MLP", {"target_modules": ["lin0"], "pair_dissociation": False}),
    "MLP is LoRA": ("MLP", {"target_modules": ["lin0"], "private_rank": 2}),
    "MLP pure sharing": ("MLP", {"target_modules": ["lin0"], "r": None, "private_rank": 0}),
    "MLP LayerNorm": ("MLP_LayerNorm", {"target_modules": ["lin0", "lin1"]}),
    "MLP2": ("MLP2", {"target_modules": ["lin0"]}),
    "Conv1D": ("EmbConv1D", {"target_modules": ["conv1d"], "shards_per_vector": 1}),
    "Parameter": ("MlpUsingParameters", {"target_modules": [], "target_parameters": ["lin0.weight"]}),
    "Parameters": ("MlpUsingParameters", {"target_modules": [], "target_parameters": ["lin0.weight", "lin1.weight"]}),
    "Conv1D and Linear": ("EmbConv1D", {"target_modules": ["conv1d", "lin0"], "shards_per_vector": 1}),
}
RANDOM = {"init_weights": False}
TWO_ADAPTERS = [
    ("MoS same", "mos", SmallMos, {"target_modules": ["lin0"]} | RANDOM, {"target_modules": ["lin0"]} | RANDOM),
    ("MoS different", "mos", SmallMos, {"target_modules": ["lin0"]} | RANDOM, {"target_modules": ["lin1"]} | RANDOM),
]
MIXED = [
    (
        "MoS mixed adapter",
        SmallMos(target_modules=["lin0"], **RANDOM),
        SmallMos(target_modules=["lin0"], r=4, equivalent_rank=4, index_seed=1, **RANDOM),
    )
]


def language_models(task_type: str | None) -> list[tuple[type[MosConfig], dict[str, object]]]:
    return [(SmallMos, {"task_type": task_type, "target_modules": None} | settings) for settings in LANGUAGE]


EXPERTS = {
    "one parameter": ([], ["mlp.experts.down_proj"]),
    "on different blocks": ([], ["0.mlp.experts.gate_up_proj", "1.mlp.experts.down_proj"]),
    "both, and default layers": (None, ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]),
    "with layers": (["q_proj", "v_proj"], ["mlp.experts.down_proj"]),
}
ONE_CASE = "config_cls"
CASE = "config_cls,config_kwargs"
# By file, then by the names that a parametrisation has there: what it runs over.
CASES: dict[str, dict[str, list[Any]]] = {
    "test_custom_models": {
        "test_name,model_id,config_cls,config_kwargs": [
            (name, model, SmallMos, settings) for name, (model, settings) in CUSTOM.items()
        ],
        "test_name,tuner_method,config_cls,config_kwargs_1,config_kwargs_2": TWO_ADAPTERS,
        "test_name,config0,config1": MIXED,
        ONE_CASE: [SmallMos],
    },
    "test_decoder_models": {CASE: language_models("CAUSAL_LM")},
    "test_encoder_decoder_models": {CASE: language_models("SEQ_2_SEQ_LM")},
    "test_feature_extraction_models": {CASE: language_models("FEATURE_EXTRACTION")},
    "test_seq_classifier": {CASE: language_models("SEQ_CLS")},
    "test_config": {"config_class,mandatory_kwargs": [(MosConfig, {})], "config_class": [MosConfig]},
    "test_quantization": {CASE: [(SmallMos, settings) for settings in LANGUAGE]},
    "test_target_parameters": {
        "model_id,config_cls,config_kwargs": [
            (
                "trl-internal-testing/tiny-GptOssForCausalLM",
                SmallMos,
                {"task_type": "CAUSAL_LM", "target_modules": modules, "target_parameters": parameters},
            )
            for modules, parameters in EXPERTS.values()
        ]
    },
    "test_low_level_api": {"config": [SmallMos()]},
}
# Tests that name LoRA in their body; there, LoraConfig means MoS.
HARD_WIRED = {
    "test_tuners_utils": ("TestPeftCustomKwargs", "TestTargetedModuleNames", "TestExcludedModuleNames"),
}
# What is not run, by part of its name, and why.
LEFT_OUT = {
    "layer_indexing": "counts trainable tensors per layer; PEFT exempts methods with shared pools, by name",
    "weighted_combination": "add_weighted_adapter is LoRA's and IA3's; MoS has none",
    "ia3": "tests IA3 although its class is run for LoRA",
    "include_all_linear_layers_diffusion": "needs a diffusion pipeline from the hub",
    "add_second_adapter_with_all_linear": "asserts that adapter weights are nn.Linear modules, which pools are not",
    "does_not_target_classifier_head": "counts layers by the class LoraLayer",
    "prompt_learning": "not about tuners",
    "mixed_adapter_batches[trl-internal-testing/tiny-gptoss": "the words of LoRA's refusal; `test_experts.py` has ours",
    "batches_unsupported_layer_raises": "targets an embedding, which MoS refuses when it is added",
    "batches_mha_raises": "targets MultiheadAttention, which MoS refuses when it is added",
    "default_target_modules_list_of_str": "adds an architecture to the defaults of LoRA and DeLoRA",
    "default_target_modules_str": "adds an architecture to the defaults of LoRA and DeLoRA",
}


def as_mos(**settings: Any) -> SmallMos:
    """What stands in for `LoraConfig(...)`: alpha for lora_alpha."""
    return SmallMos(**{name.removeprefix("lora_"): value for name, value in settings.items()})


def is_mos(value: object) -> bool:
    return isinstance(value, MosConfig) or (isinstance(value, type) and issubclass(value, MosConfig))


def stem(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Exchange the cases of every parametrisation that the table knows."""
    cases = CASES.get(stem(metafunc.module), {})
    marks = metafunc.definition.own_markers
    for position, mark in enumerate(marks):
        names = mark.args[0].replace(" ", "") if mark.name == "parametrize" else ""
        if names in cases:
            marks[position] = pytest.mark.parametrize(names, cases[names]).mark


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    selected = [item for item in items if is_selected(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in selected])
    items[:] = selected
    # Their helpers ask by class who merges into Conv1D and who serves mixed batches: MoS can what LoRA can.
    importlib.import_module("tests.testing_common").LoraConfig = SmallMos
    for name in HARD_WIRED:
        importlib.import_module(f"tests.{name}").LoraConfig = as_mos


def is_selected(item: Any) -> bool:
    """Whether it is about MoS, and not left out."""
    if any(part in item.name.lower() for part in LEFT_OUT):
        return False
    if item.parent.name in HARD_WIRED.get(stem(item.module), ()):
        return True
    return hasattr(item, "callspec") and any(map(is_mos, item.callspec.params.values()))
