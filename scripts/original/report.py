"""The result as Markdown: counts per benchmark and run, the training sets, and the first differences of each."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from scripts.cell.provenance import git_revision, package_version
from scripts.markdown import pipe_table
from scripts.original.checkout import COMMIT, REPOSITORY
from scripts.original.compared import Compared, shown
from scripts.original.sets import ComparedSet

SHOWN = 3  # differences of a row
PACKAGES = ("evaluate", "datasets", "numpy", "pandas", "torch", "transformers")


def report(label: str, data: Any, rows: Sequence[Compared], sets: Sequence[ComparedSet], missing: Sequence[str]) -> str:
    """The whole page. missing: training sets whose raw files are not on this machine."""
    parts = [
        f"# {label} against open-instruct",
        "\n".join(f"- {line}" for line in _provenance(data)),
        "## Evaluation",
        _totals(rows),
        *(part for benchmark, each in _by_benchmark(rows) for part in _benchmark(benchmark, each)),
        "## Training sets",
        pipe_table(
            ("Set", "Examples here", "Examples there", "The same"),
            [(each.dataset, each.ours, each.theirs, each.same) for each in sets],
        ),
        *([f"Raw files not on this machine: {', '.join(missing)}."] if missing else []),
        *(_first(each.dataset, each.differences) for each in sets if each.differences),
    ]
    return "\n\n".join(parts) + "\n"


def _provenance(data: Any) -> Iterator[str]:
    yield f"open-instruct: {REPOSITORY} at {COMMIT}"
    yield f"this repository: {git_revision()}"
    yield f"data: {data if data in (None, 'generated') else Path(str(data)).name}"
    yield f"date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    yield f"versions: {', '.join(f'{name} {package_version(name)}' for name in PACKAGES)}"


def _by_benchmark(rows: Sequence[Compared]) -> Iterator[tuple[str, list[Compared]]]:
    return ((name, list(each)) for name, each in groupby(rows, key=lambda row: row.benchmark))


def _totals(rows: Sequence[Compared]) -> str:
    head = ("Benchmark", "Runs", "Prompts here", "Prompts there", "Same prompt", "Answered items", "Same score")
    counted = ("items", "asked", "same_prompt", "answered", "same_score")
    return pipe_table(
        head,
        [
            (name, len(each), *(f"{sum(getattr(row, key) for row in each):,}" for key in counted))
            for name, each in _by_benchmark(rows)
        ],
    )


def _benchmark(name: str, rows: Sequence[Compared]) -> Iterator[str]:
    yield f"### {name}"
    head = ("Run", "Same prompt", "Same score", "Score here", "Score there", "Their script says", "The run's own score")
    yield pipe_table(
        head,
        [
            (
                row.run,
                f"{row.same_prompt} of {row.asked}",
                f"{row.same_score} of {row.answered}",
                shown(row.ours) or "-",
                shown(row.theirs) or "-",
                shown(row.said) if row.said else "-",
                f"{shown(row.stored)} ({row.variant})",
            )
            for row in rows
        ],
    )
    for row in rows:
        if row.differences:
            yield _first(row.run, row.differences)


def _first(name: str, differences: Sequence[str]) -> str:
    lines = [f"- {line}" for line in differences[:SHOWN]]
    return "\n".join([f"{name}, the first of {len(differences)} differences:\n", *lines])
