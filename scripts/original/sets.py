"""Training sets: what open-instruct's data script makes of the same raw files, beside what our readers yield."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from data_prep.files import Tally
from data_prep.readers.conversation import Conversation
from data_prep.sources import Files, held
from scripts.config import CONFIGS, choices, compose
from scripts.original import theirs
from scripts.original.compared import first_difference

SCRIPT = "open_instruct/reformat_datasets.py"


@dataclass(frozen=True)
class ComparedSet:
    """ours, theirs: numbers of examples;  same: pairs at one place with the same id and the same messages.

    differences: a line each, all of them
    """

    dataset: str
    ours: int
    theirs: int
    same: int
    differences: list[str]


def compare_sets(
    cfg: DictConfig, overrides: Sequence[str], checkout: Path, work: Path
) -> tuple[list[ComparedSet], list[str]]:
    """Compare every training set of configs/crosscheck whose raw files are on this machine; and the others' names."""
    found, missing = [], []
    for name in choices("crosscheck/dataset"):
        dataset = compose([*overrides, f"dataset={name}"]).dataset
        try:
            files = held(dataset.source, cfg.data, Path(cfg.cache_dir))
        except FileNotFoundError:
            missing.append(name)
        else:
            found.append(_compared(name, _ours(dataset, files), _theirs(name, files, checkout, work / name)))
    return found, missing


def _ours(dataset: DictConfig, files: Files) -> list[Conversation]:
    reader: Any = OmegaConf.to_container(dataset.reader, resolve=True)
    return list(instantiate(reader, _partial_=True)(files, Tally()))


def _theirs(dataset: str, files: Files, checkout: Path, work: Path) -> list[Conversation]:
    """What their script writes, from links to our raw files under the names that it expects."""
    their: Any = OmegaConf.load(CONFIGS / "crosscheck" / "dataset" / f"{dataset}.yaml")
    for role, path in their.files.items():
        for file in files[role]:
            link = work / "raw" / their.name / path.format(name=file.name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
    arguments = ["--raw_data_dir", work / "raw", "--output_dir", work / "made", "--dataset", their.name]
    theirs.run([checkout / SCRIPT, *arguments], work / "output.log", cwd=work)
    (made,) = (work / "made").rglob("*.jsonl")
    with made.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _compared(dataset: str, ours: Sequence[Conversation], their: Sequence[Conversation]) -> ComparedSet:
    unlike = [(one, other) for one, other in zip(ours, their, strict=False) if not _same(one, other)]
    return ComparedSet(
        dataset=dataset,
        ours=len(ours),
        theirs=len(their),
        same=min(len(ours), len(their)) - len(unlike),
        differences=[f"`{one['id']}`: {first_difference(_text(one), _text(other))}" for one, other in unlike],
    )


def _same(one: Conversation, other: Conversation) -> bool:
    return bool(one["id"] == other["id"] and one["messages"] == other["messages"])


def _text(conversation: Conversation) -> str:
    contents = [message["content"] for message in conversation["messages"]]
    return "\n".join([conversation["id"], *contents])
