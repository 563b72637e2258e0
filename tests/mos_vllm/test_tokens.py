"""The same greedy tokens from MoS folders as from the exported adapters, in every condition that a CPU can show."""

import itertools
import json
import sys

import pytest
import torch

import mos
from tests.mos_vllm import running
from tests.mos_vllm.make import quantize, save_adapter, tiny_llama

pytestmark = pytest.mark.slow
pytest.importorskip("vllm", reason="vLLM is not installed")

# More than max_cpu_loras and max_loras, so that slots and the host's places change hands; other r, l, e, types, blocks.
ADAPTERS = [
    {},
    {"seed": 1},
    {"seed": 2},
    {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    {"r": 6, "equivalent_rank": 3, "shards_per_vector": 2, "private_rank": 0, "layers_to_transform": [1, 2, 4, 6, 7]},
    {"seed": 3},
    {"r": 16, "equivalent_rank": 4, "shards_per_vector": 1, "target_modules": ["up_proj", "o_proj"]},
    {"seed": 4, "random_scaling": True, "scale_mean": 1.0, "scale_std": 0.5},
    {
        "r": None,
        "equivalent_rank": 1,
        "shards_per_vector": 1,
        "private_rank": 0,
        "target_modules": ["k_proj", "down_proj"],
    },
    {"seed": 5, "pair_dissociation": False},
    {"seed": 6, "alpha": 5},
    {"r": 2, "equivalent_rank": 2, "private_rank": 2, "seed": 7},
    {"seed": 8, "layers_to_transform": [7], "equivalent_rank": 8},
]
PROMPTS = [[5, 17, 33, 80, 41], [9, 9, 3], [70, 12, 55, 31, 8, 64, 2]]
ENGINE = {"dtype": "float32", "enable_lora": True, "max_lora_rank": 16, "max_loras": 3, "max_cpu_loras": 5}


@pytest.fixture(scope="module")
def generate(work, plugin_environment):
    """A function that gives the tokens of each phase, in one engine."""

    def run(name, phases, engine=None, **settings):
        path = work / f"{name}.json"
        full = {"name": name, "engine": ENGINE | (engine or {}), "phases": phases, "prompts": PROMPTS} | settings
        path.write_text(json.dumps(full), encoding="utf-8")
        command = [sys.executable, "-m", "tests.mos_vllm.generate", str(work), str(path)]
        environment = plugin_environment | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        code, output = running.run(command, 600, env=environment)
        assert code == 0, output[-6000:]
        return [json.loads((work / f"{name}-{i}.json").read_text(encoding="utf-8")) for i in range(len(phases))]

    return run


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A base model, adapters as saved (mos-0, ...), and exported (lora-0, ...)."""
    work = tmp_path_factory.mktemp("work")
    tiny_llama().save_pretrained(work / "base")
    for number, settings in enumerate(ADAPTERS):
        save_adapter(work / f"mos-{number}", **settings)
        mos.export_lora(work / f"mos-{number}", work / f"lora-{number}")
    return work


COUNT = range(len(ADAPTERS))
NATIVE, EXPORTED = [f"mos-{i}" for i in COUNT], [f"lora-{i}" for i in COUNT]
MIXED = [f"{'mos' if i % 2 else 'lora'}-{i}" for i in COUNT]
CONDITIONS = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "no prefix cache": {"enable_prefix_caching": False},
    "device store for three": {"additional_config": {"mos": {"device_store_gib": 0.0002}}},
    "tensor parallel": {"tensor_parallel_size": 2},
    "fully sharded": {"tensor_parallel_size": 2, "fully_sharded_loras": True},
}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_native_adapters_give_the_tokens_of_the_exported_ones(generate, condition):
    """Twice over, in another order, and mixed with LoRA adapters in one batch; and the base model stays itself."""
    phases = [[None, *EXPORTED], [None, *NATIVE], [None, *NATIVE[::-1]], [None, *MIXED]]
    exported, native, again, mixed = generate(condition.replace(" ", "-"), phases, CONDITIONS[condition])
    assert native == exported and mixed == exported
    width = len(ADAPTERS) + 1
    for prompt in range(len(PROMPTS)):
        rows = again[prompt * width : (prompt + 1) * width]
        assert [rows[0], *rows[:0:-1]] == exported[prompt * width : (prompt + 1) * width]
    distinct = {json.dumps(text) for text in exported}
    assert len(distinct) > 0.8 * len(exported)  # adapters and prompts do differ


@pytest.mark.skipif(
    not torch.cuda.is_available() and torch.cpu.get_capabilities().get("avx512_bf16") is False,
    reason="vLLM's build for CPUs multiplies 4 bits only with AVX512-BF16",
)
def test_a_base_in_four_bits(generate, work):
    """NF4 and 8 bits cannot be tried: vLLM 0.32 has no bitsandbytes, and takes no LoRA at all on a CPU with 8 bits."""
    quantize(work / "base", work / "base-4-bits")
    phases = [[None, *EXPORTED], [None, *NATIVE], [None, *MIXED]]
    exported, native, mixed = generate("four-bits", phases, base="base-4-bits", engine={"dtype": "bfloat16"})
    assert native == exported and mixed == exported
    assert len({json.dumps(text) for text in exported}) > 0.8 * len(exported)


def test_cached_prefixes_are_those_of_the_same_adapter(generate, work):
    """Prompts of several blocks of the prefix cache, which are 128 tokens on a CPU if they are not made smaller."""
    phases = [[None, *EXPORTED[:4]], [None, *NATIVE[:4]], [None, *NATIVE[3::-1]], [None, *NATIVE[:4]]]
    settings = {"prompts": [(prompt * 24)[:70] for prompt in PROMPTS], "engine": {"block_size": 32}}
    exported, native, backwards, again = generate("prefixes", phases, **settings)
    assert native == exported == again
    assert [backwards[5 * i] for i in range(3)] == [exported[5 * i] for i in range(3)]
    assert [backwards[5 * i + 1 : 5 * i + 5] for i in range(3)] == [
        exported[5 * i + 1 : 5 * i + 5][::-1] for i in range(3)
    ]
    cached = json.loads((work / "prefixes-cached.json").read_text(encoding="utf-8"))
    assert cached[0] == 0 and cached[2] == cached[3] == 3 * 5 * 64  # two whole blocks of each prompt, for each adapter


def test_several_samples_of_one_prompt(generate):
    """n > 1: greedy samples are equal, and equal to the exported adapter's."""
    exported, native = generate("samples", [EXPORTED[:4], NATIVE[:4]], sampling={"n": 3, "temperature": 0.8, "seed": 7})
    assert native == exported
    assert all(len(samples) == 3 for samples in native)
    assert any(one != other for samples in native for one, other in itertools.pairwise(samples))
