"""Base models: fetched and converted once, quantized for training, dequantized for evaluation."""

import errno
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
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from data_prep.storage import full_disk_named, made_once
from scripts.cell import pretraining, runs
from scripts.cell.process import worker_pool

OF_THE_DISK = {  # errors that are none of the network; other words than the system's, which `full_disk_named` looks for
    errno.ENOSPC: "its disk is full",
    errno.EDQUOT: "your share of its disk is full",
    errno.EACCES: "you may not write there",
    errno.EROFS: "it is read-only",
}
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


def load_tokenizer(model: DictConfig, cache_dir: Path | str) -> PreTrainedTokenizerBase:
    """The tokenizer of `model`, with a pad token and padding on the right."""
    return AutoTokenizer.from_pretrained(checkpoint(model, cache_dir), padding_side="right")


def checkpoint(model: DictConfig, cache_dir: Path | str) -> Path:
    """The published base model as a checkpoint folder with its tokenizer; converted once, then cached.

    A tokenizer without a pad token gets `<pad>`, and the embeddings get one more row (docs/protocol.md, Chat format).
    Raises FileNotFoundError, PermissionError, ConnectionError or ValueError, each with the way out.
    """
    return _cached(_published(model, cache_dir), lambda folder: _convert(model, folder))


def load_quantized(model: DictConfig, trainer: DictConfig, cache_dir: Path | str) -> PreTrainedModel:
    """The base model for training: linear layers in 4 bits (`trainer.quantization`), the rest in `compute_dtype`.

    Quantized once, then cached: on a CPU that takes a minute even for a small model. Raises as `checkpoint`.
    """
    plain = checkpoint(model, cache_dir)
    place = folders(model, trainer, cache_dir)["4bit"]
    path = _cached(place, lambda folder: _quantize(plain, trainer).save_pretrained(folder))
    return in_training_layout(AutoModelForCausalLM.from_pretrained(path, device_map=_device()))


def dequantized_checkpoint(model: DictConfig, trainer: DictConfig, cache_dir: Path | str) -> Path:
    """The base model for evaluation: its 4-bit weights back in `trainer.compute_dtype`, so both stages see the same.

    A normal checkpoint folder with its tokenizer; made once, then cached. No GPU memory stays in use in this process.
    Raises as `checkpoint`.
    """
    checkpoint(model, cache_dir)
    place = folders(model, trainer, cache_dir)["dequantized"]
    return _cached(place, lambda folder: in_own_process(_dequantize, model, trainer, cache_dir, folder))


def folders(model: DictConfig, trainer: DictConfig, cache_dir: Path | str) -> dict[str, Path]:
    """Where the three forms of the base model are kept: `published`, `4bit` and `dequantized`."""
    published, quantization = _published(model, cache_dir), trainer.quantization
    double = "-double" if quantization.double_quantization else ""
    stem = f"{published.name}-{quantization.type}{double}-{trainer.compute_dtype}"
    return {"published": published} | {form: published.with_name(f"{stem}-{form}") for form in ("4bit", "dequantized")}


def in_own_process(function: Callable[..., None], *arguments: object) -> None:
    """Call `function` where its GPU memory cannot stay: in a process of its own if there is a GPU, else right here.

    PyTorch keeps freed GPU memory for itself until its process ends, and the engine then finds too little. What the
    function raises is raised here.
    """
    if not torch.cuda.is_available():
        function(*arguments)
        return
    with worker_pool(1) as process:
        process.submit(function, *arguments).result()


def compute_dtype(trainer: DictConfig) -> torch.dtype:
    """`trainer.compute_dtype` as torch's. Raises ValueError if it is neither bfloat16 nor float32."""
    if trainer.compute_dtype not in ("bfloat16", "float32"):
        raise ValueError(f"trainer.compute_dtype='{trainer.compute_dtype}' is not supported; use bfloat16 or float32.")
    return getattr(torch, trainer.compute_dtype)


def _cached(path: Path, fill: Callable[[Path], None]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_named(path.parent):  # each library that writes a checkpoint reports a full disk in its own way
        return made_once(path, fill)


def _convert(model: DictConfig, folder: Path) -> None:
    if model.source.kind not in SOURCES:
        raise ValueError(f"Unknown model.source.kind '{model.source.kind}'; use one of {', '.join(SOURCES)}.")
    network, tokenizer = SOURCES[model.source.kind](model)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the new row is random, though masked wherever it is used
            network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    # The evaluation decides how to decode, so published defaults (a temperature, say) are left out.
    network.generation_config = GenerationConfig.from_model_config(network.config)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _published(model: DictConfig, cache_dir: Path | str) -> Path:
    return Path(cache_dir) / "models" / f"{model.name}-{runs.model_key(model)}"


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
    """Tell bitsandbytes (0.50) to leave the weights as they are when it evaluates on a CPU with AVX512-BF16.

    It would repack them for speed. The repacked layout has no gradient, and gave SmolLM2 wrong logits.
    """
    for module in network.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return network


def _dequantize(model: DictConfig, trainer: DictConfig, cache_dir: Path | str, folder: Path) -> None:
    """Write the published model to `folder`, its linear layers replaced by their dequantized weights."""
    dtype = compute_dtype(trainer)
    network = AutoModelForCausalLM.from_pretrained(checkpoint(model, cache_dir), dtype=dtype)
    for name, layer in load_quantized(model, trainer, cache_dir).named_modules():
        if isinstance(layer, Linear4bit):
            stored = cast(Params4bit, layer.weight)
            weight = dequantize_4bit(stored.data, stored.quant_state)  # (o, h)
            network.get_submodule(name).weight.data = weight.to("cpu", dtype)
    network.save_pretrained(folder)
    load_tokenizer(model, cache_dir).save_pretrained(folder)


def gguf_file(source: DictConfig) -> Path:
    """The GGUF file inside an installed Python distribution, which is not imported.

    Raises FileNotFoundError, with the way out, if it is not there.
    """
    try:
        path = Path(str(distribution(source.distribution).locate_file(source.file)))
    except PackageNotFoundError:
        raise FileNotFoundError(f"{source.distribution} is not installed; run `make setup`.") from None
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; install {source.distribution} again.")
    return path


def _from_gguf(model: DictConfig) -> Loaded:
    path = gguf_file(model.source)
    return _load(path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32)


def _from_folder(model: DictConfig) -> Loaded:
    return _load(Path(model.source.path), dtype="auto")


def _from_hub(model: DictConfig) -> Loaded:
    repo = model.source.repo
    huggingface_hub.logging.set_verbosity_error()  # no line per retry: the sentences below tell how it ended
    try:
        folder = huggingface_hub.snapshot_download(
            repo, revision=model.source.revision, allow_patterns=["*.json", "*.safetensors", "tokenizer.model"]
        )
    except (GatedRepoError, RepositoryNotFoundError) as error:
        raise PermissionError(
            f"'{repo}' is gated or unknown to this account: accept its licence on the hub and set HF_TOKEN, "
            "or use a copy of your own (model=local local_model=...)."
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno in OF_THE_DISK:
            raise OSError(
                f"'{repo}' cannot be written to {huggingface_hub.constants.HF_HUB_CACHE}: {OF_THE_DISK[error.errno]}. "
                "Set HF_HOME to a folder of your own with enough space."
            ) from error
        raise ConnectionError(
            f"'{repo}' at revision {model.source.revision} cannot be fetched from the hub "
            f"({type(error).__name__}); check the network, or use a copy (model=local local_model=...)."
        ) from error
    return _load(Path(folder), dtype="auto")


def _load(folder: Path, **options: object) -> Loaded:
    """Network and tokenizer of a folder. Raises ValueError if it holds no complete causal language model."""
    try:
        network, info = cast(Any, AutoModelForCausalLM).from_pretrained(folder, output_loading_info=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder, **{k: v for k, v in options.items() if k == "gguf_file"})
    except Exception as error:  # a broken folder makes the loaders raise anything, from KeyError to OverflowError
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{folder} cannot be loaded as a causal language model: {reason}") from error
    if info["missing_keys"]:
        raise ValueError(f"{folder} is incomplete: no weights for {', '.join(sorted(info['missing_keys'])[:3])}.")
    return network, tokenizer


SOURCES: dict[str, Callable[[DictConfig], Loaded]] = {
    "generated": pretraining.micro_model,
    "gguf": _from_gguf,
    "hub": _from_hub,
    "local": _from_folder,
}
