"""Runs one of open-instruct's evaluation scripts on answers that are there already. A program of its own:

    python child.py JOB

Their package is called `eval`, like ours, so this process imports nothing of this repository. Their script runs as from
the command line. Stand-ins take the place of the model, which looks up each prompt among ours, and of the code that
would execute programs.

JOB is a JSON file:
    checkout   their folder
    module     their script, e.g. `eval.NAME.run_eval`
    groups     {"module", "tasks"}: their list of tasks to group by, replaced by ours; or null
    executor   their module that would run programs; or null
    trials     a list of
        folder      where asked.json and metric.jsonl are written
        arguments   of the command line
        answers     {prompt: [[id, outputs or null], ...]}: items in order; outputs are texts, or one {letter: logit}
        programs    {program: how it ended}

asked.json gets {"asked": [[prompt, id or null], ...], "unknown": [program, ...]}: what was asked, in order, and what
would have been run and is not among `programs`. metric.jsonl gets what their metrics say of each single item.
"""

import importlib
import json
import runpy
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any


class Trial:
    """What is asked, and answered, while their script runs once."""

    def __init__(self, answers: dict[str, list[list[Any]]], programs: dict[str, str]) -> None:
        self.left = {prompt: list(entries) for prompt, entries in answers.items()}
        self.programs = programs
        self.asked: list[list[str | None]] = []
        self.unknown: list[str] = []
        self.metric: list[dict[str, Any]] = []

    def take(self, prompt: str) -> list[Any] | None:
        """The outputs of the first item left that has this prompt; None if it has none, or if there is no such item."""
        entries = self.left.get(prompt)
        name, outputs = entries.pop(0) if entries else (None, None)
        self.asked.append([prompt, name])
        return outputs

    def execute(self, program: str, _globals: dict[str, Any]) -> None:
        """Stands for `exec`: ends as the program ended in our sandbox."""
        status = self.programs.get(program)
        if status is None:
            self.unknown.append(program)
        if status != "passed":
            raise AssertionError(status)

    def write(self, folder: Path) -> None:
        asked = {"asked": self.asked, "unknown": self.unknown}
        (folder / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
        lines = [json.dumps(row) + "\n" for row in self.metric]
        (folder / "metric.jsonl").write_text("".join(lines), encoding="utf-8")


Current = Callable[[], Trial]  # the trial that is running


def main(path: str) -> None:
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    running: list[Trial] = []
    prepare(job, lambda: running[-1])
    for given in job["trials"]:
        running.append(Trial(given["answers"], given["programs"]))
        sys.argv = [job["module"], *given["arguments"]]
        runpy.run_module(job["module"], run_name="__main__", alter_sys=True)
        running[-1].write(Path(given["folder"]))


def prepare(job: dict[str, Any], current: Current) -> None:
    """Put their package in reach, and the stand-ins where their scripts will look."""
    sys.path[0] = job["checkout"]
    package = ModuleType("eval")
    package.__path__ = [f"{job['checkout']}/eval"]  # theirs has no __init__.py, so that an installed `eval` would win
    sys.modules["eval"] = package
    sys.modules["openai"] = ModuleType("openai")
    sys.modules["vllm"] = vllm(current)
    record_metrics(current)
    utils: Any = importlib.import_module("eval.utils")
    utils.load_hf_lm = lambda **_: None
    utils.get_next_word_predictions = letters(current)
    if job["groups"]:
        listed: Any = importlib.import_module(job["groups"]["module"])
        listed.subcategories = listed.categories = {task: [task] for task in job["groups"]["tasks"]}
    if job["executor"]:
        disarm(importlib.import_module(job["executor"]), current)


def vllm(current: Current) -> ModuleType:
    """A `vllm` whose model knows the answers. They are cut at the stops that the script asks for."""

    class SamplingParams:
        def __init__(self, n: int = 1, stop: Sequence[str] | None = None, **_: Any) -> None:
            self.n, self.stop = n, stop or ()

    class LLM:
        def __init__(self, **_: Any) -> None:
            pass

        def generate(self, prompts: Sequence[str], params: SamplingParams) -> list[SimpleNamespace]:
            return [SimpleNamespace(prompt=prompt, outputs=self.outputs(prompt, params)) for prompt in prompts]

        def outputs(self, prompt: str, params: SamplingParams) -> list[SimpleNamespace]:
            texts = current().take(prompt) or [""] * params.n
            return [SimpleNamespace(text=cut(text, params.stop)) for text in texts]

    module: Any = ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams
    return module


def cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stops."""
    return min((text.partition(stop)[0] for stop in stops), key=len, default=text)


def letters(current: Current) -> Callable[..., tuple[list[int], list[list[float]]]]:
    """Stands for `get_next_word_predictions`: the largest softmax of the logits of our engine."""

    def predict(_model: object, _tokenizer: object, prompts: Sequence[str], candidate_token_ids: Any, **_: Any) -> Any:
        import torch

        given = [(current().take(prompt) or [{}])[0] for prompt in prompts]
        logits = [list(each.values()) or [0.0] * len(candidate_token_ids) for each in given]
        probabilities = torch.softmax(torch.tensor(logits), dim=-1)  # (prompts, letters)
        return probabilities.argmax(dim=-1).tolist(), probabilities.tolist()

    return predict


def record_metrics(current: Current) -> None:
    """Let every metric of `evaluate` also note what it says of each single item."""
    import evaluate

    load = evaluate.load

    class Metric:
        def __init__(self, name: str) -> None:
            self.metric: Any = load(name)

        def compute(self, predictions: list[Any], references: list[Any], **options: Any) -> Any:
            references = [as_columns(reference) for reference in references]
            for prediction, reference in zip(predictions, references, strict=True):
                scores = self.metric._compute([prediction], [reference], **options)  # `compute` takes 30 ms an item
                row = {name: float(score) for name, score in scores.items()}
                current().metric.append(row | ({"id": prediction["id"]} if isinstance(prediction, dict) else {}))
            return self.metric.compute(predictions=predictions, references=references, **options)

    evaluate.load = Metric


def as_columns(reference: Any) -> Any:
    """A reference whose answers are a dict of lists. The `datasets` of 2024 made that of a list of dicts itself."""
    if not isinstance(reference, dict):
        return reference
    answers = reference["answers"]
    return {**reference, "answers": {key: [answer[key] for answer in answers] for key in answers[0]}}


def disarm(module: Any, current: Current) -> None:
    """Let their executor build every program as it does, and never run one: `exec` looks up how ours ended."""

    class Process:
        def __init__(self, target: Callable[[], None]) -> None:
            self.start = target

        def join(self, timeout: float) -> None:
            pass

        def is_alive(self) -> bool:
            return False

    stand_ins = {
        "multiprocessing": SimpleNamespace(Process=Process, Manager=lambda: SimpleNamespace(list=list)),
        "create_tempdir": nullcontext,
        "swallow_io": nullcontext,
        "time_limit": nullcontext,
        "reliability_guard": lambda: None,
    }
    for name, stand_in in stand_ins.items():
        getattr(module, name)  # it fails here if their code is not what this was written for
        setattr(module, name, stand_in)
    module.exec = lambda program, variables: current().execute(program, variables)


if __name__ == "__main__":
    main(sys.argv[1])
