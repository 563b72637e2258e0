"""Proof that an exported LoRA is the adapter it was made from: both give the same logits on a few tokens."""

import copy
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from peft.utils import load_peft_weights
from torch import Tensor
from transformers import PreTrainedModel

from mos.files import ROOT

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}  # of the largest logit
ROUGH = 0.02  # in half precision


def require_same_logits(model: PreTrainedModel, adapter_dir: Path, lora_dir: Path) -> None:
    """Run the base model `model` with both adapters; it is left as it was.

    Raises ValueError if the logits differ by more than rounding, if the adapter itself changes them by less than that,
    and for a model that reads no tokens or has adapters already.
    """
    inputs = tokens(model)
    base, own, lora = (logits(model, folder, inputs) for folder in (None, adapter_dir, lora_dir))
    rounding = TOLERANCE.get(model.dtype, ROUGH) * float(own.abs().max())
    effect, difference = (float((own - other).abs().max()) for other in (base, lora))
    if not difference <= rounding:
        raise ValueError(
            f"The exported LoRA does not give the logits of {adapter_dir} on {type(model).__name__}: they differ by up "
            f"to {difference:.2g}, where the adapter changes them by {effect:.2g}. PEFT loads a LoRA for other modules "
            "here; merge the adapter instead (merge_and_unload)."
        )
    if effect <= rounding:
        raise ValueError(
            f"{adapter_dir} changes the logits by at most {effect:.2g}, which proves nothing in {model.dtype}. Pass "
            "the model in float32, or export without check if the adapter is untrained."
        )


def tokens(model: PreTrainedModel) -> dict[str, Tensor]:
    """Two rows of 16 tokens, drawn with a seed; for an encoder-decoder also as what its decoder reads."""
    if model.main_input_name != "input_ids":
        raise ValueError(
            f"check runs the model on tokens, but {type(model).__name__} reads {model.main_input_name}. Export without "
            "check and compare the outputs on inputs of your own."
        )
    vocabulary = cast(Tensor, model.get_input_embeddings().weight).shape[0]
    ids = torch.randint(vocabulary, (2, 16), generator=torch.Generator().manual_seed(0)).to(model.device)
    names = ("input_ids", "decoder_input_ids") if model.config.is_encoder_decoder else ("input_ids",)
    return dict.fromkeys(names, ids)


@torch.no_grad()
def logits(model: PreTrainedModel, adapter_dir: Path | None, inputs: dict[str, Tensor]) -> Tensor:
    """The logits (in float32) of the model with the adapter in a folder, or with none."""
    if hasattr(model, "peft_config"):
        raise ValueError("check needs the base model without adapters: pass model.unload(), or load it anew.")
    adapted = model if adapter_dir is None else PeftModel.from_pretrained(twin(model, adapter_dir), str(adapter_dir))
    training = adapted.training
    try:
        return cast(Tensor, adapted.eval()(**inputs)[0]).float()
    finally:
        adapted.train(training)


def twin(model: PreTrainedModel, adapter_dir: Path) -> PreTrainedModel:
    """A copy of the model that shares its weights, except those that the adapter's file replaces."""
    keys = load_peft_weights(str(adapter_dir), device="cpu")
    replaced = {key.removeprefix(ROOT).replace(".base_layer.", ".") for key in keys}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    own = {id(tensor) for name, tensor in tensors if name in replaced}
    return copy.deepcopy(model, {id(tensor): tensor for _, tensor in tensors if id(tensor) not in own})
