"""Our side of the comparison: what the variant `tulu` asks, and how our code scores a run's outputs in it.

open-instruct is the original of this variant. The outputs are those of the run, in whatever variant it was evaluated.
"""

from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from joblib import cpu_count

from data_prep.storage import digest, read_json
from eval import benchmarks, scoring
from eval.benchmarks import Item, Prompting, Verdict
from eval.predictions import Record, read
from eval.session import Benchmark, chosen_items

VARIANT = "tulu"

Scores = dict[str, float]  # percent per table column


@dataclass(frozen=True)
class Trial:
    """The answers of one run to one benchmark, and the tokenizer of its model."""

    run: Path
    folder: Path  # of predictions.jsonl and metrics.json
    benchmark: Benchmark
    tokenizer: Any

    @cached_property
    def metrics(self) -> dict[str, Any]:
        return dict(read_json(self.folder / "metrics.json"))

    @cached_property
    def records(self) -> dict[str, Record]:
        """The answered items by id. A prompt that did not fit has no answer."""
        found = read(self.folder / "predictions.jsonl")
        return {name: record for name, record in found.items() if record["outputs"] != [{}]}

    @cached_property
    def items(self) -> dict[str, Item]:
        """All items by id, as the variant asks them."""
        return {
            item.id: item for item in self.benchmark.module.items(self.benchmark.raw, self.tokenizer, self.prompting)
        }

    @cached_property
    def verdicts(self) -> dict[str, tuple[list[Any], Verdict]]:
        """Predictions and verdict by id of the answered items. Programs run in the sandbox."""
        with ThreadPoolExecutor(cpu_count()) as pool:
            return dict(zip(self.records, pool.map(self._judged, self.records.values()), strict=True))

    @property
    def prompting(self) -> Prompting:
        return benchmarks.prompting(self.benchmark.config, VARIANT, self.metrics["chat"])

    @property
    def samples(self) -> int:
        """Outputs per item."""
        return int((self.metrics["decoding"] or {}).get("samples", 1))

    def check(self) -> None:
        """Raise ValueError if the data and settings of this command are not those that the run was evaluated with."""
        own = benchmarks.prompting(self.benchmark.config, self.metrics["variant"], self.metrics["chat"])
        items = chosen_items(self.benchmark, self.tokenizer, own, self.metrics["limit"])
        if digest([[item.id, item.prompt, item.gold] for item in items]) != self.metrics["prompts"]:
            raise ValueError(
                f"{self.folder} answers other items than this command's data and settings give; use the profile, DATA "
                "and OVERRIDES of that evaluation."
            )
        config = self.benchmark.config
        if not scoring.current(self.metrics, scoring.key(config, items), config):
            raise ValueError(
                f"{self.folder} was scored by other tests, or another mean, than this command's data and settings "
                f"give; run python -m scripts.evaluate runs=[{self.run}] with them, which scores its answers anew."
            )

    def scores(self) -> dict[str, Scores]:
        """By id of the answered items."""
        columns = self.benchmark.config["columns"]
        return {name: dict(zip(columns, verdict.scores, strict=True)) for name, (_, verdict) in self.verdicts.items()}

    def answers(self) -> dict[str, list[list[Any]]]:
        """`{prompt: [[id, outputs or None], ...]}`, items in the order of the files.

        One answer to a prompt counts for all items that have it, because their scripts keep one output per prompt.
        """
        outputs = {self.items[name].prompt: record["outputs"] for name, record in self.records.items()}
        found: dict[str, list[list[Any]]] = defaultdict(list)
        for name, item in self.items.items():
            own = self.records[name]["outputs"] if name in self.records else outputs.get(item.prompt)
            found[item.prompt].append([name, own])
        return found

    def programs(self) -> dict[str, str]:
        """How each program ended. The program of an item without an answer, whose completion is empty, was not run."""
        if not self.benchmark.config.get("programs"):
            return {}
        program = self.benchmark.module.program
        ended = {program(item.extra["problem"], ""): "not run" for item in self.items.values()}
        for name, (predictions, verdict) in self.verdicts.items():
            texts = [program(self.items[name].extra["problem"], prediction) for prediction in predictions]
            ended |= zip(texts, verdict.notes, strict=True)
        return ended

    def average(self, scores: Mapping[str, Scores]) -> Scores:
        """The mean over items or tasks, as the benchmark's yaml says. None scored: empty."""
        rows = [{"task": self.items[name].task, "scores": each} for name, each in scores.items()]
        return benchmarks.aggregate(rows, self.benchmark.config["average"]) if rows else {}

    def _judged(self, record: Record) -> tuple[list[Any], Verdict]:
        item, stops = self.items[record["id"]], self.prompting.stops
        predictions = [benchmarks.predict(self.benchmark.config, item, output, stops) for output in record["outputs"]]
        return predictions, self.benchmark.module.score(item, predictions)
