"""Any trained adapter as a standard PEFT LoRA, from its files alone: every method's update is a product B A."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME, load_peft_weights
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from mos.common import private
from mos.files import ROOT, last_name
from mos.proof import require_same_logits
from mos.registration import METHODS

# Names of linear layers in mixtures of experts as transformers 4 held them. PEFT takes a LoRA on them for one on the
# experts' parameters, wherever else in the model the names stand.
REWRITTEN = ("gate", "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj")


def export_lora(adapter_dir: str | Path, out_dir: str | Path, *, check: PreTrainedModel | None = None) -> None:
    """Write the adapter in `adapter_dir` to the new folder `out_dir` as a LoRA that PEFT and vLLM load.

    No base model is needed. The tensors keep their type; the update stays the same, B A times lora_alpha / r. Biases
    and `modules_to_save` are carried over. `out_dir` appears only when complete.

    check: the base model, to prove the export: PEFT loads both adapters into it, and both must give the same logits on
    a few tokens. The model is left as it was.

    Raises:
        FileNotFoundError: `adapter_dir` holds no adapter, or one without its weights.
        FileExistsError: `out_dir` exists and is not empty.
        ValueError: the adapter's method has no export, its file is not consistent, or the check has failed.
    """
    adapter_dir, out_dir = Path(adapter_dir), Path(out_dir)
    check_folders(adapter_dir, out_dir)
    config = PeftConfig.from_pretrained(str(adapter_dir))
    lora, tensors = as_lora(config, load_peft_weights(str(adapter_dir), device="cpu"))

    def accept(folder: Path) -> None:
        if check is not None:
            require_same_logits(check, adapter_dir, folder)

    write_adapter(out_dir, lora, tensors, accept)


def check_folders(adapter_dir: Path, out_dir: Path) -> None:
    """Raises FileNotFoundError and FileExistsError as `export_lora` does.

    Without weights in the folder PEFT would take its path for the name of a repository and ask the hub.
    """
    if not (adapter_dir / "adapter_config.json").is_file():
        raise FileNotFoundError(f"{adapter_dir} holds no adapter_config.json. Name the folder of a saved adapter.")
    if not any((adapter_dir / name).is_file() for name in (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)):
        raise FileNotFoundError(
            f"{adapter_dir} holds a config but no weights ({SAFETENSORS_WEIGHTS_NAME}). Name a folder with both, or "
            "train the adapter anew."
        )
    if out_dir.exists() and any(out_dir.iterdir()):
        raise FileExistsError(f"{out_dir} is not empty. Remove it or name another folder.")


def write_adapter(
    out_dir: Path,
    config: PeftConfig,
    tensors: dict[str, Tensor],
    accept: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write both files of an adapter into the new folder `out_dir`, which appears only when complete.

    accept: raises an error if the folder, which it is given under a temporary name, must not appear
    """
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out_dir.parent, prefix=f".{out_dir.name}-") as folder:
        complete = Path(folder) / "adapter"
        config.save_pretrained(str(complete))
        save_file(tensors, complete / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
        accept(complete)
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
    parameters = parameter_targets(config, factors)
    for name, (a, b) in factors.items():
        tensors[f"{ROOT}{name}.lora_A.weight"] = a.contiguous()
        tensors[f"{ROOT}{name}.lora_B.weight"] = by_rank(b, config.r) if name in parameters else b.contiguous()
    return lora_config(config, {name: len(a) for name, (a, _) in factors.items() if name not in parameters}), tensors


def parameter_targets(config: Any, names: Iterable[str]) -> set[str]:
    """Those of the names in a file that belong to `target_parameters`: `target_modules` does not match them.

    Raises ValueError if the rank per expert is not in the config.
    """
    if not getattr(config, "target_parameters", None):
        return set()
    if config.r is None:
        raise ValueError("r=None on target_parameters has no export to LoRA: its rank is the whole pool's.")
    return {name for name in names if not check_target_module_exists(config, name)}


def by_rank(b: Tensor, rank: int) -> Tensor:
    """Columns of B (o, E * r), expert after expert, in LoRA's order (o, r * E): all experts' first column, ..."""
    return b.view(len(b), -1, rank).mT.flatten(1)  # (o, E, r) -> (o, r, E) -> (o, r*E)


def lora_config(config: Any, ranks: dict[str, int]) -> LoraConfig:
    """A LoRA on the modules in `ranks` and on the config's `target_parameters`.

    It is scaled as `config` says: by alpha / r, or by 1 for a method without alpha.
    """
    parameters = list(getattr(config, "target_parameters", None) or ())
    common = config.r if parameters else Counter(ranks.values()).most_common(1)[0][0]
    alphas = {rank: getattr(config, "alpha", rank) for rank in (common, *ranks.values())}
    mixture = is_mixture(config, ranks)
    rewritten = {name for name in ranks if mixture and last_name(name) in REWRITTEN}
    return LoraConfig(
        r=common,
        lora_alpha=alphas[common],
        rank_pattern={name: rank for name, rank in ranks.items() if rank != common},
        alpha_pattern={name: alphas[rank] for name, rank in ranks.items() if alphas[rank] != alphas[common]},
        target_modules=sorted(ranks.keys() - rewritten),
        target_parameters=sorted([*parameters, *(f"{name}.weight" for name in rewritten)]) or None,
        modules_to_save=config.modules_to_save,
        bias="lora_only" if config.bias.endswith("_only") else config.bias,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        inference_mode=True,
    )


def is_mixture(config: Any, names: Iterable[str]) -> bool:
    """Whether an adapter on these modules is one of a mixture of experts; older files do not name the base model's type
    and are known by their targets."""
    if private.is_mixture(getattr(config, "base_model_type", None)):
        return True
    return bool(getattr(config, "target_parameters", None)) or any("expert" in name for name in names)
