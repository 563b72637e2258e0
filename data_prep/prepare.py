"""Turns raw files of a training set into encoded examples, kept under a key of everything that determines them."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, load_from_disk
from hydra.utils import instantiate
from joblib import cpu_count
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from data_prep.chat import IGNORED, encode
from data_prep.files import Tally
from data_prep.readers import VERSION
from data_prep.readers.conversation import Conversation
from data_prep.sources import Files, fetched, fingerprint
from data_prep.storage import digest, made_once, write_json

log = logging.getLogger(__name__)

SPLIT_SEED = 42
MESSAGES_READER = {"_target_": "data_prep.readers.messages.read"}
EXAMPLES_PER_PROCESS = 5_000  # encoding fewer takes less time than starting another process
BROKEN_SHOWN = 20


@dataclass(frozen=True)
class Prepared:
    """Encoded examples of one training set.

    train, validation: columns `input_ids` and `labels`, two lists of int of the same length; a label is -100 where no
        loss is taken
    key: 16 hex digits, the name of the folder in the cache
    report: counts, by name
        lines                    rows of the raw files
        broken, broken_rows      of these, the rows left out, and why (`file:line: reason`)
        examples                 conversations that the reader made
        dropped                  of these, the ones left out: no label among the first max_length tokens
        truncated                kept, but longer than max_length
        tokens, labelled_tokens  of all kept examples
        train, validation        kept examples on each side of the split
    """

    train: Dataset
    validation: Dataset
    key: str
    report: dict[str, Any]


def prepare(
    dataset: DictConfig,
    tokenizer: Any,
    *,
    data: Path | str | None,
    max_length: int,
    validation_size: int,
    cache_dir: Path | str,
    processes: int | None = None,
) -> Prepared:
    """Return the encoded examples of one training set. They are made once; later calls load them.

    dataset: a config of configs/dataset
    tokenizer: of transformers; its content is part of the key
    data: local folder of original files, or "generated"; None downloads what the config's `source.upstream` names
    max_length: tokens kept of each example
    validation_size: examples split off
    processes: how many encode; the result does not depend on it. None chooses by the number of examples
    Raises:
        FileNotFoundError, ConnectionError, PermissionError: the raw files are not there (see `sources.fetched`)
        ValueError: truncated files, too many broken rows, or fewer examples than `validation_size` needs
    """
    cache = Path(cache_dir).absolute()  # datasets would take `~` in a relative folder for a home
    if "::" in str(cache):
        raise ValueError(f"cache_dir={cache}: datasets takes '::' for a chain of addresses; choose another folder.")
    files, reader = _raw(dataset, data, cache)
    content = {
        "version": VERSION,
        "files": fingerprint(files, cache),
        "reader": reader,
        "max_broken_share": dataset.max_broken_share,
        "tokenizer": _tokenizer_content(tokenizer),
        "max_length": max_length,
        "validation": [validation_size, SPLIT_SEED],
    }
    key = digest(content)[:16]

    def build(folder: Path) -> None:
        conversations, tally = _read(dataset, files, reader)
        examples = _encode(dataset.name, conversations, tokenizer, max_length, processes)
        _save(dataset.name, examples, tally, validation_size, folder)

    return _load(made_once(cache / "data" / f"{dataset.name}-{key}", build), key)


def _raw(dataset: DictConfig, data: Path | str | None, cache_dir: Path) -> tuple[Files, dict[str, Any]]:
    """Return the raw files of a training set, downloaded if need be, and the config of their reader."""
    files = fetched(dataset.source, data, cache_dir)
    if dataset.source.messages is not None:
        return files, MESSAGES_READER
    reader: Any = OmegaConf.to_container(dataset.reader, resolve=True)
    return files, reader


def _tokenizer_content(tokenizer: Any) -> str:
    """Hash what determines a tokenizer's output. Truncation and padding are left out: each call sets them anew."""
    if tokenizer.is_fast:
        content = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    else:
        content = tokenizer.get_vocab()
    return digest([content, tokenizer.bos_token, tokenizer.eos_token])


def _read(dataset: DictConfig, files: Files, reader: dict[str, Any]) -> tuple[list[Conversation], Tally]:
    tally = Tally()
    read = instantiate(reader, _partial_=True)(files, tally)
    conversations = list(tqdm(read, desc=f"Reading {dataset.name}", unit=" rows"))
    for broken in tally.broken[:BROKEN_SHOWN]:
        log.warning("Left out a broken row: %s", broken)
    tally.check(dataset.max_broken_share, dataset.name)
    return conversations, tally


def _encode(
    name: str, conversations: list[Conversation], tokenizer: Any, max_length: int, processes: int | None
) -> Dataset:
    """Encode every conversation; columns as `_example` names them."""
    processes = processes or min(cpu_count(), len(conversations) // EXAMPLES_PER_PROCESS)
    return Dataset.from_list([{"messages": conversation["messages"]} for conversation in conversations]).map(
        _example,
        fn_kwargs={"tokenizer": tokenizer, "max_length": max_length},
        remove_columns="messages",
        num_proc=processes if processes > 1 else None,
        desc=f"Encoding {name}",
    )


def _example(conversation: Conversation, tokenizer: Any, max_length: int) -> dict[str, Any]:
    """Return `input_ids` and `labels`; `labelled`, the number of labels with loss; `cut`, whether tokens were lost."""
    full = encode(conversation["messages"], tokenizer, max_length=None)
    kept = {column: values[:max_length] for column, values in full.items()}
    labelled = sum(label != IGNORED for label in kept["labels"])
    return {**kept, "labelled": labelled, "cut": len(full["labels"]) > max_length}


def _save(name: str, examples: Dataset, tally: Tally, validation_size: int, folder: Path) -> None:
    """Drop the examples without a label, split off the validation set, and write both sets and the report."""
    kept = examples.filter(lambda labelled: labelled > 0, input_columns="labelled", desc=f"Filtering {name}")
    if not 0 < validation_size < len(kept):
        raise ValueError(
            f"trainer.validation_size={validation_size} does not fit '{name}', which has {len(kept)} usable examples; "
            f"use 1 to {len(kept) - 1}."
        )
    report = {
        "lines": tally.lines,
        "broken": len(tally.broken),
        "examples": len(examples),
        "dropped": len(examples) - len(kept),
        "truncated": sum(kept["cut"]),
        "tokens": sum(map(len, kept["input_ids"])),
        "labelled_tokens": sum(kept["labelled"]),
        "train": len(kept) - validation_size,
        "validation": validation_size,
        "broken_rows": tally.broken,
    }
    split = kept.remove_columns(["labelled", "cut"]).train_test_split(test_size=validation_size, seed=SPLIT_SEED)
    split["train"].save_to_disk(folder / "train")
    split["test"].save_to_disk(folder / "validation")
    write_json(folder / "report.json", report)


def _load(folder: Path, key: str) -> Prepared:
    train, validation = (load_from_disk(folder / split) for split in ("train", "validation"))
    return Prepared(train, validation, key, json.loads((folder / "report.json").read_text(encoding="utf-8")))
