"""SuperNI: the natural-instructions repository (docs/protocol.md, Training data).

The random draws are those of the original script, so the same examples come out. The script seeds with 42 and goes
through the tasks in the order of the split. A task that has more instances than needed draws one `sample` of them. Then
each instance, in this order, draws one `choices` of a template (zero-shot), or one `sample` of the positive examples
(few-shot, if there are more than two).
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.files import BrokenRow, Tally, load_json, needed, strict, texts, usable
from data_prep.readers.conversation import SEED, Conversation, conversation
from data_prep.readers.templates import fill
from data_prep.sources import Files, single
from data_prep.text import read_text

SHOTS = 2
LEAKS = "_mmmlu_"  # in the names of tasks made from MMLU, which is one of the benchmarks


@dataclass(frozen=True)
class Instance:
    id: str
    input: str
    output: str


@dataclass(frozen=True)
class TaskFile:
    definition: str
    examples: list[tuple[str, ...]]  # (input, output)
    instances: list[Any]


def read(files: Files, tally: Tally, per_task: int, zero_shot: int) -> Iterator[Conversation]:
    """Yield `per_task` instances of every task of the split. The first `zero_shot` of them show no examples.

    files: roles `split` (one file of task names) and `tasks` (`<name>.json`)
    Raises:
        FileNotFoundError: a task of the split has no file
        ValueError: a task file is truncated or lacks a field
    """
    rng = random.Random(SEED)
    split = single(files, "split")
    paths = {path.stem: path for path in files["tasks"]}
    for name in read_text(split).split():
        if LEAKS in name:
            continue
        if name not in paths:
            raise FileNotFoundError(f"{split} names task '{name}', but {files['tasks'][0].parent} has no {name}.json.")
        yield from _conversations(paths[name], tally, per_task, zero_shot, rng)


def _conversations(
    path: Path, tally: Tally, per_task: int, zero_shot: int, rng: random.Random
) -> Iterator[Conversation]:
    (task,) = strict([(str(path), load_json(path))], _task)
    numbered = ((f"{path}[{index}]", instance) for index, instance in enumerate(task.instances))
    instances = list(usable(numbered, _instance, tally))
    if len(instances) > per_task:
        instances = rng.sample(instances, k=per_task)
    for number, instance in enumerate(instances):
        if number < zero_shot:
            prompt, reply = fill(task.definition, instance.input, instance.output, rng)
        else:
            prompt, reply = _few_shot(task, instance, rng), instance.output.strip()
        yield conversation("super_ni", instance.id, prompt, reply)


def _task(document: Any) -> TaskFile:
    definitions = needed(document, "Definition", list)
    if not definitions or not isinstance(definitions[0], str):
        raise BrokenRow("field 'Definition' holds no text")
    examples = [texts(example, "input", "output") for example in needed(document, "Positive Examples", list)]
    return TaskFile(definitions[0], examples, needed(document, "Instances", list))


def _instance(instance: Any) -> Instance:
    outputs = needed(instance, "output", list)
    if not outputs:
        raise BrokenRow("field 'output' is empty")
    (output,) = texts({"output": outputs[0]}, "output")
    id_, input_ = texts(instance, "id", "input")
    return Instance(id_, input_, output)


def _few_shot(task: TaskFile, instance: Instance, rng: random.Random) -> str:
    examples = task.examples
    if len(examples) > SHOTS:
        examples = rng.sample(examples, k=SHOTS)
    shots = "".join(f"Input:\n{x.strip()}\nOutput:\n{y.strip()}\n\n" for x, y in examples)
    return f"{task.definition.strip()}\n\n{shots}Input:\n{instance.input.strip()}\nOutput:\n"
