"""Their side: how configs/crosscheck starts open-instruct's evaluation scripts, and what these leave behind."""

import csv
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import OmegaConf

from data_prep.sources import find_files
from data_prep.storage import write_json
from eval.session import Benchmark
from scripts.config import CONFIGS
from scripts.original.ours import Scores, Trial

CHILD = Path(__file__).with_name("child.py")
PATIENCE_S = 3600  # for all runs of a benchmark; one script never ends for a prompt over 2,048 tokens


@dataclass(frozen=True)
class Script:
    """A file of configs/crosscheck/benchmark; docs/crosscheck.md says what its keys are."""

    module: str
    arguments: Mapping[str, str]
    flags: Sequence[str]
    items: Mapping[str, Any]
    overall: Mapping[str, str]
    groups: str | None = None
    executor: str | None = None

    def command(self, save: Path, tokenizer: Path, chat: bool) -> list[str]:
        """The arguments of the command line."""
        given = {**self.arguments, "save_dir": save, "model_name_or_path": tokenizer}
        flags = [*self.flags, *(["use_chat_format"] if chat else [])]
        return [
            *(text for key, value in given.items() for text in (f"--{key}", str(value))),
            *(f"--{f}" for f in flags),
        ]


@dataclass(frozen=True)
class Answered:
    """What a script left in a trial's folder.

    asked: (prompt, the id of our item that has it, else None), in order;  unknown: programs that ours did not build
    """

    script: Script
    folder: Path
    samples: int  # outputs per item

    @cached_property
    def asked(self) -> list[tuple[str, str | None]]:
        return [(prompt, name) for prompt, name in self._json("asked.json")["asked"]]

    @cached_property
    def unknown(self) -> list[str]:
        return list(self._json("asked.json")["unknown"])

    def scores(self) -> dict[str, Scores]:
        """Percent by id, of the items that both sides have, mean over the samples of an item."""
        rows: dict[str | None, list[Scores]] = defaultdict(list)
        names = [name for _, name in self.asked for _ in range(self.samples)]
        found = list(self._rows())
        assert len(found) == len(names), f"{self.folder} has scores for {len(found)} outputs of {len(names)}"
        for name, row in zip(names, found, strict=True):
            rows[row.get("id", name)].append(self._percent(row))
        return {name: _mean(rows[name]) for name in names if name is not None}

    def overall(self) -> Scores:
        """Percent per column, as the script itself says it."""
        said, percent = self._json("metrics.json"), self.script.items["percent"]
        return {column: percent * _at(said, path.split(".")) for column, path in self.script.overall.items()}

    def _rows(self) -> Iterator[dict[str, Any]]:
        """A row per output, in the order asked, or with the item's id in it."""
        for path in sorted(self.folder.glob(self.script.items["file"])):
            with path.open(encoding="utf-8", newline="") as file:
                yield from csv.DictReader(file) if path.suffix == ".csv" else map(json.loads, file)

    def _percent(self, row: Mapping[str, Any]) -> Scores:
        columns, percent = self.script.items["columns"], self.script.items["percent"]
        return {column: percent * _number(row[key]) for column, key in columns.items()}

    def _json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


def has(benchmark: str) -> bool:
    """Whether open-instruct has this benchmark, by configs/crosscheck."""
    return _path(benchmark).is_file()


def answered(trials: Sequence[Trial], root: Path, checkout: Path, metrics: Path | None, work: Path) -> list[Answered]:
    """Run a benchmark's script once for each trial, in one process; what it writes stays in an empty folder `work`.

    root: of the benchmark's raw files
    metrics: a folder of `evaluate`'s metric scripts; None: `evaluate` fetches them
    Raises ValueError if the script stops, with its last words; TimeoutError if it does not come to an end.
    """
    script = _script(trials[0].benchmark, root)
    folders = [work / str(number) for number in range(len(trials))]
    tasks = sorted({item.task for trial in trials for item in trial.items.values()})
    job = {
        "checkout": str(checkout),
        "module": script.module,
        "groups": script.groups and {"module": script.groups, "tasks": tasks},
        "executor": script.executor,
        "trials": [_given(script, trial, folder) for trial, folder in zip(trials, folders, strict=True)],
    }
    write_json(work / "job.json", job)
    run([CHILD, work / "job.json"], work / "output.log", cwd=metrics or work)
    return [Answered(script, folder, trial.samples) for trial, folder in zip(trials, folders, strict=True)]


def run(program: Sequence[Path | str], log: Path, cwd: Path) -> None:
    """Run a Python program to its end; what it prints goes to `log`. Raises ValueError, TimeoutError."""
    # -O: without assertions, one of which takes a gold answer of 0, as the micro data have it, for none
    command = [sys.executable, "-O", "-X", "utf8", *map(str, program)]
    with log.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(command, cwd=cwd, stdout=file, stderr=subprocess.STDOUT, timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"open-instruct's script did not end within {PATIENCE_S} s; see {log}.") from None
    if done.returncode:
        last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["without a word"])[-1]
        raise ValueError(f"open-instruct's script stopped ({last.strip()}); all that it printed is in {log}.")


def _path(benchmark: str) -> Path:
    return CONFIGS / "crosscheck" / "benchmark" / f"{benchmark}.yaml"


def _script(benchmark: Benchmark, root: Path) -> Script:
    files = find_files(OmegaConf.create(benchmark.config["source"]), root)
    known = {"root": str(root), "files": {role: str(paths[0]) for role, paths in files.items()}}
    merged = OmegaConf.create({**known, "benchmark": benchmark.config, "script": OmegaConf.load(_path(benchmark.name))})
    values: Any = OmegaConf.to_container(merged, resolve=True)
    return Script(**values["script"])


def _given(script: Script, trial: Trial, folder: Path) -> dict[str, Any]:
    """What the child needs for one trial. The tokenizer is all of the model that the script asks for."""
    tokenizer = folder.with_name(f"{folder.name}-tokenizer")
    trial.tokenizer.save_pretrained(tokenizer)
    folder.mkdir(parents=True)
    arguments = script.command(folder, tokenizer, trial.metrics["chat"])
    return {"folder": str(folder), "arguments": arguments, "answers": trial.answers(), "programs": trial.programs()}


def _at(values: Any, keys: Sequence[str]) -> float:
    return _at(values[keys[0]], keys[1:]) if keys else float(values)


def _number(value: Any) -> float:
    """CSV holds booleans as text."""
    return float({"True": 1, "False": 0}.get(value, value) if isinstance(value, str) else value)


def _mean(rows: Sequence[Scores]) -> Scores:
    return {column: fmean(row[column] for row in rows) for column in rows[0]}
