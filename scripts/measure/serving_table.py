"""Results of the serving bench: a JSON file for each figure, and the table of them in docs/performance.md."""

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.code import code_key
from data_prep.storage import write_json
from scripts.cell.provenance import provenance
from scripts.markdown import pipe_table
from scripts.measure.serving_bench import Measured, Sizes
from scripts.measure.training import Ratio

MARKED = re.compile(r"(<!-- make bench-serve -->\n).*?(<!-- end -->)", re.DOTALL)
MEASURED_CODE = ("mos_vllm", "scripts/measure")  # what is measured, and how
HEAD = ("figure", "ratio [95%]", "aim", "of")


def conditions(sizes: Sizes) -> dict[str, Any]:
    """What a result depends on. A figure that was measured under it is not measured again."""
    here = provenance()
    code = {package: code_key(package) for package in MEASURED_CODE}
    return {"sizes": asdict(sizes), "versions": here["versions"], "hardware": here["hardware"], "code": code}


def once(path: Path, sizes: Sizes, measure: Callable[[], list[Measured]]) -> list[Measured]:
    """The rows in `path` if they were measured under these conditions; otherwise measure, and write them."""
    wanted = conditions(sizes)
    if path.exists() and (found := json.loads(path.read_text(encoding="utf-8")))["conditions"] == wanted:
        return [Measured(**row | {"ratio": Ratio(*row["ratio"])}) for row in found["rows"]]
    begun = time.monotonic()
    rows = measure()
    seconds = round(time.monotonic() - begun, 1)
    result = {"rows": [asdict(row) for row in rows], "seconds": seconds, "conditions": wanted}
    write_json(path, result | {"provenance": provenance()})
    return rows


def table(rows: Sequence[Measured]) -> str:
    """The rows in Markdown."""
    return pipe_table(HEAD, map(cells, rows))


def cells(row: Measured) -> tuple[str, ...]:
    median, low, high = row.ratio
    ratio = f"{median:.3f}" if low == high else f"{median:.3f} [{low:.3f}, {high:.3f}]"
    aim = "-" if row.aim is None else f"at {'least' if row.at_least else 'most'} {row.aim:g}"
    return row.figure, ratio, aim if row.met is None else f"{aim}{'' if row.met else ', missed'}", row.detail


def described(sizes: Sizes) -> str:
    """The sizes and the machine, for the line above the table."""
    hardware = provenance()["hardware"]
    cases = "; ".join(
        f"{name}: {case.blocks} blocks of hidden {case.hidden}, adapters with r={case.rank}, e={case.equivalent_rank}, "
        f"rounds of {requests} requests with {prompt} tokens"
        for name, case, requests, prompt in (
            ("small", sizes.small, sizes.small_requests, sizes.small_prompt),
            ("large", sizes.large, sizes.large_requests, sizes.large_prompt),
        )
    )
    return (
        f"{hardware['cpu']}, one thread, {hardware['memory_gib']:.0f} GiB, no GPU. Two random Llamas in float32 "
        f"({cases}). All linear layers, l={sizes.shards}. {sizes.slots} slots and as many clients, answers of "
        f"{sizes.tokens} tokens, {sizes.rounds} rounds, {sizes.cold} cold adapters. Throughput with many adapters, and "
        "a server without MoS requests, are measured on the large one; all else on the small one."
    )


def filled(text: str, block: str) -> str:
    """`text` with the marked table renewed. Raises ValueError if the marks are gone."""
    if not MARKED.search(text):
        raise ValueError("docs/performance.md has no '<!-- make bench-serve -->' ... '<!-- end -->' for the table.")
    return MARKED.sub(lambda found: f"{found[1]}{block}\n{found[2]}", text)
