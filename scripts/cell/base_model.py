"""Base models: fetched and converted once, quantized for training, dequantized for evaluation."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from httpx import HTTPError
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from omegaconf import DictConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from data_prep.storage import full_disk_named, made_once
from scripts.cell import runs

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def load_tokenizer(model: DictConfig, cache_dir: Path | str) -> PreTrainedTokenizerBase:
    """The tokenizer of `model`, with a pad token and padding on the right."""
    return AutoTokenizer.from_pretrained(checkpoint(model, cache_dir), padding_side="right")


def checkpoint(model: DictConfig, cache_dir: Path | str) -> Path:
    """The base model as published, as a checkpoint folder with its tokenizer; converted once, then cached.

    A tokenizer without a pad token gets `<pad>`, and the embeddings get one more row (docs/protocol.md, Chat format).
    Raises FileNotFoundError, PermissionError, ConnectionError or ValueError, each with the way out.
    """
    path = Path(cache_dir) / "models" / f"{model.name}-{runs.model_key(model)}"
    return _cached(path, lambda folder: _convert(model, folder))


def load_quantized(model: DictConfig, trainer: DictConfig, cache_dir: Path | str) -> PreTrainedModel:
    """The base model with its linear layers in 4 bits (`trainer.quantization`), the rest in `trainer.compute_dtype`.

    Quantized once, then cached: on a CPU that takes a minute even for a small model. Raises as `checkpoint`.
    """
    plain = checkpoint(model, cache_dir)
    path = _cached(_variant(plain, trainer, "4bit"), lambda folder: _quantize(plain, trainer).save_pretrained(folder))
    return in_training_layout(AutoModelForCausalLM.from_pretrained(path, device_map=_device()))


def dequantized_checkpoint(model: DictConfig, trainer: DictConfig, cache_dir: Path | str) -> Path:
    """The base model after a pass through its 4 bits, in `trainer.compute_dtype`: what every evaluation runs on.

    A normal checkpoint folder with its tokenizer; made once, then cached. Raises as `checkpoint`.
    """
    path = _variant(checkpoint(model, cache_dir), trainer, "dequantized")
    return _cached(path, lambda folder: _dequantize(model, trainer, cache_dir, folder))


def meta_model(model: DictConfig) -> PreTrainedModel:
    """The shapes of `model` on the meta device, from `model.architecture`; nothing is downloaded or allocated."""
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**model.architecture))


def compute_dtype(trainer: DictConfig) -> torch.dtype:
    """`trainer.compute_dtype` as torch's. Raises ValueError if it is neither bfloat16 nor float32."""
    if trainer.compute_dtype not in ("bfloat16", "float32"):
        raise ValueError(f"trainer.compute_dtype='{trainer.compute_dtype}' is not supported; use bfloat16 or float32.")
    return getattr(torch, trainer.compute_dtype)


def _cached(path: Path, fill: Callable[[Path], None]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_named(path.parent):  # which the writers of checkpoints report in shapes of their own
        return made_once(path, fill)


def _convert(model: DictConfig, folder: Path) -> None:
    if model.source.kind not in SOURCES:
        raise ValueError(f"Unknown model.source.kind '{model.source.kind}'; use one of {', '.join(SOURCES)}.")
    network, tokenizer = SOURCES[model.source.kind](model)
    if tokenizer.pad_token is None:
        set_seed(0)  # of the new row, which is masked wherever it is used
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
        network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    network.generation_config = GenerationConfig.from_model_config(network.config)  # decoding is set by the evaluation
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _variant(plain: Path, trainer: DictConfig, form: str) -> Path:
    double = "-double" if trainer.quantization.double_quantization else ""
    return plain.with_name(f"{plain.name}-{trainer.quantization.type}{double}-{trainer.compute_dtype}-{form}")


def _device() -> dict[str, str]:
    return {"": f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"}


def _quantize(plain: Path, trainer: DictConfig) -> PreTrainedModel:
    dtype = compute_dtype(trainer)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=trainer.quantization.type,
        bnb_4bit_use_double_quant=trainer.quantization.double_quantization,
        bnb_4bit_compute_dtype=dtype,
    )
    return AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=quantization, dtype=dtype, device_map=_device()
    )


def in_training_layout(network: PreTrainedModel) -> PreTrainedModel:
    """Keep bitsandbytes (0.50) from repacking the weights at the first evaluation on a CPU with AVX512-BF16.

    The repacked layout has no gradient, and the logits of SmolLM2 came out far off with it.
    """
    for module in network.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return network


def _dequantize(model: DictConfig, trainer: DictConfig, cache_dir: Path | str, folder: Path) -> None:
    dtype = compute_dtype(trainer)
    network = AutoModelForCausalLM.from_pretrained(checkpoint(model, cache_dir), dtype=dtype)
    for name, layer in load_quantized(model, trainer, cache_dir).named_modules():
        if isinstance(layer, Linear4bit):
            stored = cast(Params4bit, layer.weight)
            weight = dequantize_4bit(stored.data, stored.quant_state)  # (o, h)
            network.get_submodule(name).weight.data = weight.to("cpu", dtype)
    network.save_pretrained(folder)
    load_tokenizer(model, cache_dir).save_pretrained(folder)


def _from_gguf(model: DictConfig) -> Loaded:
    """A GGUF file inside an installed Python distribution, which is located but never imported."""
    source = model.source
    try:
        path = Path(str(distribution(source.distribution).locate_file(source.file)))
    except PackageNotFoundError:
        raise FileNotFoundError(f"{source.distribution} is not installed; run `make setup`.") from None
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; install {source.distribution} again.")
    return _load(path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32)


def _from_folder(model: DictConfig) -> Loaded:
    return _load(Path(model.source.path), dtype="auto")


def _from_hub(model: DictConfig) -> Loaded:
    repo = model.source.repo
    huggingface_hub.logging.set_verbosity_error()  # its retries; the outcome is told below
    try:
        folder = huggingface_hub.snapshot_download(
            repo, revision=model.source.revision, allow_patterns=["*.json", "*.safetensors", "tokenizer.model"]
        )
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise PermissionError(
            f"'{repo}' is gated or unknown to this account: accept its licence on the hub and set HF_TOKEN, "
            "or use a copy of your own (model=local model.source.path=...)."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, HTTPError, OSError) as error:
        raise ConnectionError(
            f"'{repo}' at revision {model.source.revision} cannot be fetched from the hub "
            f"({type(error).__name__}); check the network, or use a copy (model=local model.source.path=...)."
        ) from error
    return _load(Path(folder), dtype="auto")


def _load(folder: Path, **options: object) -> Loaded:
    """Network and tokenizer of a folder. Raises ValueError if it holds no complete causal language model."""
    try:
        network, info = cast(Any, AutoModelForCausalLM).from_pretrained(folder, output_loading_info=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder, **{k: v for k, v in options.items() if k == "gguf_file"})
    except Exception as error:  # the loaders raise whatever the broken part of the folder happens to cause
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{folder} cannot be loaded as a causal language model: {reason}") from error
    if info["missing_keys"]:
        raise ValueError(f"{folder} is incomplete: no weights for {', '.join(sorted(info['missing_keys'])[:3])}.")
    return network, tokenizer


def _generated(model: DictConfig) -> Loaded:
    from scripts.cell.pretraining import pretrained  # whose command line needs `checkpoint`

    return pretrained(model)


SOURCES: dict[str, Callable[[DictConfig], Loaded]] = {
    "generated": _generated,
    "gguf": _from_gguf,
    "hub": _from_hub,
    "local": _from_folder,
}
