"""Predictions made readable: which answers failed, where two runs differ, in the terminal or as a page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment
from rich.console import Console, Group
from rich.panel import Panel
from rich.text import Text

from data_prep.storage import write_text
from eval.predictions import Record, read

PAGE = """<!doctype html>
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
  article { border: 1px solid #bbb; border-radius: 6px; margin: 1rem 0; padding: 0 1rem 1rem; }
  pre { background: #f4f4f4; padding: .6rem; white-space: pre-wrap; overflow-wrap: anywhere; }
  h3 { margin: .8rem 0 0; font-size: .9rem; color: #555; }
</style>
<h1>{{ title }}</h1>
<p>{{ answers | length }} items</p>
{% for answer in answers %}
<article id="{{ answer.id }}">
  <h2>{{ answer.id }}</h2>
  {% for name, text in answer.parts %}<h3>{{ name }}</h3><pre dir="auto">{{ text }}</pre>{% endfor %}
</article>
{% endfor %}
"""


@dataclass(frozen=True)
class Answer:
    """An item and what there is to read about it, as (name, text) in order."""

    id: str
    parts: list[tuple[str, str]]


def evaluation(run: Path, benchmark: str) -> Path:
    """The latest evaluation of a run on a benchmark. Raises FileNotFoundError if there is none."""
    folders = sorted(run.glob(f"eval/{benchmark}-*/predictions.jsonl"), key=lambda path: path.stat().st_mtime)
    if not folders:
        raise FileNotFoundError(
            f"{run} has not been evaluated on {benchmark}; run: python -m scripts.evaluate runs=[{run}] "
            f"benchmark=[{benchmark}]"
        )
    return folders[-1].parent


def failed(folder: Path) -> list[Answer]:
    """The items that are not fully right: prompt, output, what was parsed from it, what was expected."""
    return [
        Answer(row["id"], [("prompt", row["prompt"]), *_answered(row, ""), ("expected", _text(row["gold"]))])
        for row in read(folder / "predictions.jsonl").values()
        if not _right(row)
    ]


def compared(folder: Path, other: Path) -> list[Answer]:
    """The items that both evaluations hold and on which their predictions differ.

    Raises ValueError if they have no item in common.
    """
    ours, theirs = (read(path / "predictions.jsonl") for path in (folder, other))
    shared = [name for name in ours if name in theirs]
    if not shared:
        raise ValueError(f"{folder} and {other} have no item in common; evaluate both with the same data and limit.")
    return [
        Answer(
            name,
            [
                ("prompt", ours[name]["prompt"]),
                *_answered(ours[name], "this run: "),
                *_answered(theirs[name], "other run: "),
                ("expected", _text(ours[name]["gold"])),
            ],
        )
        for name in shared
        if ours[name]["predictions"] != theirs[name]["predictions"]
    ]


def show(title: str, answers: Sequence[Answer], count: int) -> None:
    """Print the first `count` answers."""
    console = Console()
    for answer in answers[:count]:
        parts = [Text.assemble((f"{name}\n", "bold cyan"), text) for name, text in answer.parts]
        console.print(Panel(Group(*parts), title=Text(answer.id), title_align="left"))
    console.print(Text(f"{min(count, len(answers))} of {len(answers)} items shown, {title}"))


def write_page(path: Path, title: str, answers: Sequence[Answer]) -> None:
    """Write all answers as one HTML page."""
    page = Environment(autoescape=True).from_string(PAGE)
    write_text(path, page.render(title=title, answers=answers))


def _answered(row: Record, whose: str) -> list[tuple[str, str]]:
    mark = "right" if _right(row) else "wrong"
    parts = [(f"{whose}output", _several(row["outputs"])), (f"{whose}parsed, {mark}", _several(row["predictions"]))]
    return [*parts, (f"{whose}notes", _several(row["notes"]))] if row["notes"] else parts


def _right(row: Record) -> bool:
    return min(row["scores"].values()) >= 100.0


def _several(values: Sequence[object]) -> str:
    return "\n---\n".join(map(_text, values))


def _text(value: object) -> str:
    return value if isinstance(value, str) else repr(value)
