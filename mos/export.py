"""Any trained adapter as a standard PEFT LoRA, from its files alone: every method's update is a product B A."""

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME, load_peft_weights
from safetensors.torch import save_file
from torch import Tensor

from mos.files import ROOT
from mos.registration import METHODS


def export_lora(adapter_dir: str | Path, out_dir: str | Path) -> None:
    """Write the adapter in `adapter_dir` to the new folder `out_dir` as a LoRA that PEFT and vLLM load.

    No base model is needed. The tensors keep their type; the update stays the same, B A times lora_alpha / r. Biases
    and `modules_to_save` are carried over. `out_dir` appears only when complete.

    Raises:
        FileNotFoundError: `adapter_dir` holds no adapter.
        FileExistsError: `out_dir` exists and is not empty.
        ValueError: the adapter's method has no export, or its file is not consistent.
    """
    adapter_dir, out_dir = Path(adapter_dir), Path(out_dir)
    check_folders(adapter_dir, out_dir)
    config = PeftConfig.from_pretrained(str(adapter_dir))
    write_adapter(out_dir, *as_lora(config, load_peft_weights(str(adapter_dir), device="cpu")))


def check_folders(adapter_dir: Path, out_dir: Path) -> None:
    """Raises FileNotFoundError and FileExistsError as `export_lora` does."""
    if not (adapter_dir / "adapter_config.json").is_file():
        raise FileNotFoundError(f"{adapter_dir} holds no adapter_config.json. Name the folder of a saved adapter.")
    if out_dir.exists() and any(out_dir.iterdir()):
        raise FileExistsError(f"{out_dir} is not empty. Remove it or name another folder.")


def write_adapter(out_dir: Path, config: PeftConfig, tensors: dict[str, Tensor]) -> None:
    """Write both files of an adapter into the new folder `out_dir`, which appears only when complete."""
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir.parent, prefix=f".{out_dir.name}-") as folder:
        complete = Path(folder) / "adapter"
        config.save_pretrained(str(complete))
        save_file(tensors, complete / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        if out_dir.exists():
            out_dir.rmdir()
        complete.replace(out_dir)


def as_lora(config: Any, state: dict[str, Tensor]) -> tuple[PeftConfig, dict[str, Tensor]]:
    """The configuration and the tensors of the LoRA that equals a saved adapter; a LoRA is returned as it is."""
    method = config.peft_type.value
    if method == "LORA":
        return config, state
    if method not in METHODS:
        raise ValueError(f"A {method} adapter has no export to LoRA. Known: LORA, {', '.join(sorted(METHODS))}.")
    factors = METHODS[method].factors(config, state)
    tensors = {key: value for key, value in state.items() if f".{method.lower()}_" not in key}
    for name, (a, b) in factors.items():
        tensors[f"{ROOT}{name}.lora_A.weight"] = a.contiguous()
        tensors[f"{ROOT}{name}.lora_B.weight"] = b.contiguous()
    return lora_config(config, {name: len(a) for name, (a, _) in factors.items()}), tensors


def lora_config(config: Any, ranks: dict[str, int]) -> LoraConfig:
    """A LoRA on the modules in `ranks`, scaled as `config` says: by alpha / r, or by 1 for a method without alpha."""
    [(common, _)] = Counter(ranks.values()).most_common(1)
    alphas = {rank: getattr(config, "alpha", rank) for rank in ranks.values()}
    return LoraConfig(
        r=common,
        lora_alpha=alphas[common],
        rank_pattern={name: rank for name, rank in ranks.items() if rank != common},
        alpha_pattern={name: alphas[rank] for name, rank in ranks.items() if alphas[rank] != alphas[common]},
        target_modules=sorted(ranks),
        modules_to_save=config.modules_to_save,
        bias="lora_only" if config.bias.endswith("_only") else config.bias,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        inference_mode=True,
    )
