"""The results of a study: every run as CSV; rows, claims, parity and convergence as Markdown; the figure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import log2, nan
from pathlib import Path
from typing import Any

import pandas as pd

from data_prep import storage
from scripts.markdown import pipe_table
from scripts.study import figure, intervals, summary
from scripts.study.intervals import FULL, Estimate, Parity, estimate
from scripts.study.runs import Result, Results, Run, Store
from scripts.study.settings import RowSettings, StudySettings

PAPER = 8  # times: "approximately 8x parameter savings" (abstract, Sec. 4.2)
COLUMNS = [
    "part", "label", "seed", "rate", "steps", "parameters", "recall", "bits_per_parameter", "cross_entropy", "diverged",
    "seconds", "started", "git", "python", "versions", "code", "cpu", "cores", "torch_threads", "gpu",
]  # fmt: skip


def render(store: Store, results: Results, folder: Path) -> list[Path]:
    """Write `<study>.md`, `.csv`, `.svg` and `.png` into `folder`; returns their paths."""
    study = store.study
    stem = folder / study.name
    storage.write_text(stem.with_suffix(".csv"), runs_csv(study, results))
    storage.write_text(stem.with_suffix(".md"), markdown(study, results, store.model))
    for kind in ("svg", "png"):
        storage.write_bytes(stem.with_suffix(f".{kind}"), figure.draw(summary.lines(study, results), kind))
    return [stem.with_suffix(f".{kind}") for kind in ("md", "csv", "svg", "png")]


def runs_csv(study: StudySettings, results: Results) -> str:
    """A line per run, with what it ran on; in the order of the rows."""
    order = {row.label: i for i, row in enumerate(study.rows)}
    lines: list[dict[str, Any]] = [_run(study, run, result) for run, result in results.items()]
    lines.sort(
        key=lambda line: (order[line["label"]], line["part"] != "search", line["steps"], line["seed"], line["rate"])
    )
    return pd.DataFrame(lines, columns=COLUMNS).to_csv(index=False, lineterminator="\n")


def markdown(study: StudySettings, results: Results, model: str) -> str:
    """The study as a page; model: the name of the base model."""
    parts = [
        f"# Facts stored per trainable parameter: study `{study.name}` on {model}",
        _about(study, results),
        f"![Facts recalled, and bits per parameter, against trainable parameters]({study.name}.svg)",
        pipe_table(ROWS, _rows(study, results)),
        _rows_note(study),
    ]
    if study.parity:
        found = {label: summary.parity(study, label, results) for label in study.parity}
        parts += [
            "## The rank of LoRA that stores as much",
            pipe_table(PARITY, _parity(study, results, found)),
            _parity_note(study, found),
        ]
    if study.claims:
        parts += ["## The paper's claims", pipe_table(CLAIMS, _claims(study, results)), CLAIMS_NOTE]
    if study.doubled:
        parts += ["## With twice the steps", *_convergence(study, results)]
    return "\n\n".join([*parts, "## What it ran on", _ran_on(results)]) + "\n"


ROWS = ["Row", "Parameters", "Rate", "Rates tried", "Seeds", "Recall, %", "Stored, %", "Bits per parameter"]
SEARCHED = "The rate was chosen on a seed of its own; * the best one tried is the last of its grid."
GIVEN = "The rates are those of the study's yaml; nothing was searched on this base model for it."
PARITY = ["Row", "Equals LoRA of rank", "95% interval", "Times its own budget", "The paper", "Verdict", "Seeds"]
CLAIMS = ["Claim", "Compared", "Difference in stored, points", "95% interval", "By seed", "Verdict", "Seeds needed"]
CLAIMS_NOTE = (
    "Differences are paired by seed: the two rows learn the same facts in the same order. A claim holds if the "
    "interval is above 0, and does not hold if it is below. Seeds needed, where one cannot tell: for the difference "
    "that was found, at 80% power. Verdicts are not corrected for their number."
)
DOUBLED = ["Row", "Stored, %", "With twice the steps", "Bits per parameter", "With twice the steps"]
PAIRS = ["Rows", "Difference in stored, points", "With twice the steps", "Order stays"]


def _about(study: StudySettings, results: Results) -> str:
    facts, optimizer = study.facts, study.optimizer
    unfinished = [line.row.label for line in summary.lines(study, results) if line.recall.count < len(study.seeds)]
    about = (
        f"{facts.count:,} random facts of two key tokens and one of {facts.values} values: "
        f"{facts.count * log2(facts.values):,.0f} bits. {optimizer.steps} steps of {optimizer.batch_size} facts, "
        f"{len(study.seeds)} seeds, base model in float32; adapted: "
        f"{study.targets if isinstance(study.targets, str) else ', '.join(study.targets)} (Tied LoRA: q, k and v)."
    )
    return about + (f" **Not all seeds are finished** of {', '.join(unfinished)}." if unfinished else "")


def _rows(study: StudySettings, results: Results) -> Iterator[Sequence[str]]:
    for line in summary.lines(study, results):
        yield (
            line.row.label,
            "" if line.parameters is None else f"{line.parameters:,}",
            "" if line.rate is None else f"{line.rate:.3g}{'*' if line.edge else ''}",
            ", ".join(f"{rate:.3g}" for rate in line.grid),
            str(line.recall.count),
            _shown(line.recall, 1),
            _shown(line.stored, 1),
            _shown(line.bits, 3),
        )


def _rows_note(study: StudySettings) -> str:
    origin = GIVEN if study.search_seed is None else SEARCHED
    return (
        f"Mean and 95% interval over seeds (Student's t). {origin} Stored: of the bits of all facts. A row without an "
        "interval has fewer than two seeds, or the same value for all."
    )


def _parity(study: StudySettings, results: Results, found: Mapping[str, Parity]) -> Iterator[Sequence[str]]:
    for label, rank in found.items():
        budget = _budget(study, label, results)
        times = replace(rank, mean=rank.mean / budget, low=rank.low / budget, high=rank.high / budget)
        yield (
            label,
            f"{_bound(rank)}{rank.mean:.1f}" if rank.count else "",
            f"{rank.low:.1f} to {rank.high:.1f}" if rank.known else "",
            f"{_bound(rank)}{_shown(times, 2)}",
            f"{PAPER}",
            _eightfold(times),
            str(rank.count),
        )


def _bound(found: Parity) -> str:
    """What stands before a rank that some seeds only bound; nothing if they do so on both sides."""
    return "" if bool(found.above) == bool(found.below) else "at least " if found.above else "at most "


def _parity_note(study: StudySettings, found: Mapping[str, Parity]) -> str:
    ranks = ", ".join(str(row.rank) for row in study.ranks)
    outside = [
        f"{count} of {parity.count} seeds of {label} are {side} bounds"
        for label, parity in found.items()
        for side, count in (("lower", parity.above), ("upper", parity.below))
        if count
    ]
    here = f"here {', '.join(outside)}" if outside else "none is here"
    return (
        f"By seed: where the row lies on the curve of LoRA {ranks} of the same seed, in a line over the logarithm of "
        "the rank; then the geometric mean with a t interval. A seed outside the curve counts as its end. One that "
        f"reaches the highest value of the curve, or {FULL:.0f}% of all bits, is a lower bound, and one below the "
        f"lowest an upper bound; {here}. {PAPER} times holds if the interval begins there or above and no seed is an "
        "upper bound, and does not hold if it ends below and no seed is a lower one."
    )


def _budget(study: StudySettings, label: str, results: Results) -> float:
    """e: the rank of LoRA with as many parameters as the row; nan while neither has been trained."""
    counts = {line.row.label: line.parameters for line in summary.lines(study, results)}
    lowest = study.ranks[0]
    one, own = counts[lowest.label], counts[label]
    return own * (lowest.rank or 1) / one if one and own else nan


def _eightfold(times: Parity) -> str:
    """What the interval says of the claim; a seed that is a bound speaks on one side alone."""
    if times.low >= PAPER and not times.below:
        return "holds"
    if times.high < PAPER and not times.above:
        return "does not hold"
    return "cannot tell"


def _claims(study: StudySettings, results: Results) -> Iterator[Sequence[str]]:
    for claim, found in summary.claims(study, results):
        differences, says = list(found.by_seed.values()), intervals.verdict(found.estimate)
        yield (
            claim.text,
            f"{claim.row} against {claim.than}",
            *_signed(found.estimate),
            ", ".join(f"{value:+.1f}" for value in differences),
            says,
            _needed(differences) if says == "cannot tell" else "",
        )


def _needed(differences: Sequence[float]) -> str:
    if len(set(differences)) < 2:
        return ""
    count = intervals.seeds_needed(differences)
    return f"over {intervals.MOST_SEEDS}" if count is None else str(count)


def _convergence(study: StudySettings, results: Results) -> Iterator[str]:
    pairs = summary.convergence(study, results)
    yield pipe_table(DOUBLED, (_grown(study, study.row(label), results) for label in study.doubled))
    yield pipe_table(PAIRS, (_pair(pair) for pair in pairs))
    known = [pair for pair in pairs if pair.known]
    if not known:
        yield "Too few of these runs are finished to tell."
        return
    moved = [f"{pair.once.row} and {pair.once.than}" for pair in known if not pair.stays]
    if moved:
        yield f"**Not converged**: with twice the steps {', '.join(moved)} change places by more than their intervals."
    else:
        yield f"No two of these rows change places by more than their intervals. {_growth(study, results)}"


def _growth(study: StudySettings, results: Results) -> str:
    pairs = [_stored_by_steps(study, study.row(label), results) for label in study.doubled]
    grown = [100 * (twice.mean / once.mean - 1) for once, twice in pairs if once.mean and twice.count]
    return (
        f"The amounts are not those of a longer training: they grow by {min(grown):.0f}% to {max(grown):.0f}%."
        if grown
        else ""
    )


def _grown(study: StudySettings, row: RowSettings, results: Results) -> Sequence[str]:
    bits = [
        estimate([result["bits_per_parameter"] for result in summary.by_seed(study, row, results, times).values()])
        for times in (1, 2)
    ]
    shown = [_shown(found, 1) for found in _stored_by_steps(study, row, results)]
    return row.label, *shown, *(_shown(found, 3) for found in bits)


def _stored_by_steps(study: StudySettings, row: RowSettings, results: Results) -> list[Estimate]:
    """What the row stores with the study's steps, and with twice as many."""
    reached = [summary.by_seed(study, row, results, times).values() for times in (1, 2)]
    return [estimate([summary.stored(study, result) for result in found]) for found in reached]


def _pair(pair: summary.Convergence) -> Sequence[str]:
    stays = ("yes" if pair.stays else "no") if pair.known else ""
    return (
        f"{pair.once.row} less {pair.once.than}",
        _shown(pair.once.estimate, 2),
        _shown(pair.twice.estimate, 2),
        stays,
    )


def _ran_on(results: Results) -> str:
    origins = [result["provenance"] for result in results.values()]
    versions = [", ".join(f"{name} {version}" for name, version in o["versions"].items()) for o in origins]
    machines = [
        f"{o['hardware']['gpu'] or o['hardware']['cpu']}, {o['hardware']['torch_threads']} thread" for o in origins
    ]
    hours = sum(result["seconds"] for result in results.values()) / 3600
    lines = [
        f"{len(results)} runs, {hours:.1f} hours in all.",
        f"Code: {_distinct(str(origin['git']) for origin in origins)}.",
        f"Hardware: {_distinct(machines)}.",
        f"Python {_distinct(origin['python'] for origin in origins)}; {_distinct(versions)}.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _run(study: StudySettings, run: Run, result: Result) -> dict[str, Any]:
    origin = result["provenance"]
    hardware = {key: origin["hardware"][key] for key in ("cpu", "cores", "torch_threads", "gpu")}
    versions = " ".join(f"{name}={version}" for name, version in origin["versions"].items())
    code = " ".join(f"{name}={key}" for name, key in origin["code"].items())
    return {
        **result,
        **hardware,
        "part": _part(study, run),
        "label": run.label,
        "git": origin["git"],
        "python": origin["python"],
        "versions": versions,
        "code": code,
    }


def _part(study: StudySettings, run: Run) -> str:
    if run.seed == study.search_seed:
        return "search"
    return "reported" if run.steps == study.optimizer.steps else "doubled"


def _shown(found: Estimate, digits: int) -> str:
    if not found.count:
        return ""
    interval = f" ({found.low:.{digits}f} to {found.high:.{digits}f})" if found.known else ""
    return f"{found.mean:.{digits}f}{interval}"


def _signed(found: Estimate) -> tuple[str, str]:
    """A difference, and its interval."""
    return (
        f"{found.mean:+.2f}" if found.count else "",
        f"{found.low:+.2f} to {found.high:+.2f}" if found.known else "",
    )


def _distinct(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(texts))
