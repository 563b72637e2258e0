"""What the serving bench serves: random Llamas, MoS adapters as PEFT saves them, the same packed and exported."""

import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.storage import digest, made_once

DISTINCT = 50  # adapters with weights of their own; the others are further names of these files
HEAD = 32
VOCABULARY = 512
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FORMS = ("mos", "packed", "lora")  # as saved, in the quick-reading form, exported


@dataclass(frozen=True)
class Case:
    """A random Llama in float32, and MoS adapters on all of its linear layers.

    rank, equivalent_rank, shards: r, e, l; adapters: how many names there are
    """

    blocks: int
    hidden: int
    rank: int
    equivalent_rank: int
    shards: int
    adapters: int

    def llama(self) -> dict[str, Any]:
        """The settings of transformers.LlamaConfig. Heads are of 32 features, the fewest that vLLM takes on a CPU."""
        return {
            "vocab_size": VOCABULARY,
            "hidden_size": self.hidden,
            "intermediate_size": self.hidden * 11 // 4 // HEAD * HEAD,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.hidden // HEAD,
            "num_key_value_heads": self.hidden // HEAD,
            "head_dim": HEAD,
            "max_position_embeddings": 256,
            "tie_word_embeddings": False,
        }


def prepared(case: Case, cache_dir: Path) -> Path:
    """The folder with `base`, and with `mos`, `packed` and `lora`, each of which holds a folder for each adapter.

    Made when first asked for, and kept under `cache_dir`.
    """
    return made_once(cache_dir / "bench-serve" / digest(asdict(case))[:12], lambda folder: make(folder, case))


def thousand(case: Case, cache_dir: Path) -> Path:
    """Like `prepared`, but each MoS adapter has weights of its own, and only the first is packed and exported."""

    def fill(folder: Path) -> None:
        make(folder, replace(case, adapters=1))
        for number in range(1, case.adapters):
            vary(folder / "mos" / "0", folder / "mos" / str(number), number)

    return made_once(cache_dir / "serve-demo" / digest(asdict(case))[:12], fill)


def make(folder: Path, case: Case) -> None:
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**case.llama()))
    model.save_pretrained(folder / "base")
    words = Tokenizer(models.WordLevel({f"w{i} ": i for i in range(VOCABULARY)}, unk_token="w0 "))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0 ").save_pretrained(folder / "base")
    make_adapters(folder, model, case)
    for form in FORMS:
        for number in range(DISTINCT, case.adapters):
            name_again(folder / form / str(number % DISTINCT), folder / form / str(number))


def make_adapters(folder: Path, model: Any, case: Case) -> None:
    """The adapters that differ, in each form."""
    from peft import get_peft_model

    import mos
    from mos.common.model import LINEAR_LAYERS
    from mos_vllm.pack import pack

    config = mos.MosConfig(
        r=case.rank,
        equivalent_rank=case.equivalent_rank,
        shards_per_vector=case.shards,
        target_modules=LINEAR_LAYERS,
        task_type="CAUSAL_LM",
    )
    get_peft_model(model, config).save_pretrained(str(folder / "unchanged"))
    for number in range(min(DISTINCT, case.adapters)):
        here = vary(folder / "unchanged", folder / "mos" / str(number), number)
        mos.export_lora(here, folder / "lora" / str(number))
        pack(shutil.copytree(here, folder / "packed" / str(number)))


def vary(adapter: Path, other: Path, seed: int) -> Path:
    """Write `other` with random pools. Its indices stay: adapters of one recipe have those of one seed."""
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(tensor.shape, generator=generator) * 0.02 if name.endswith(("mos_A", "mos_B")) else tensor
        for name, tensor in load_file(adapter / WEIGHTS).items()
    }
    other.mkdir(parents=True)
    shutil.copy(adapter / CONFIG, other)
    save_file(tensors, other / WEIGHTS, metadata={"format": "pt"})
    return other


def name_again(folder: Path, other: Path) -> None:
    """A second folder with the same files, which take no further room on the disk."""
    other.mkdir(parents=True)
    for path in folder.iterdir():
        os.link(path, other / path.name)
