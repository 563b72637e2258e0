"""Times lm-evaluation-harness on task files; started by scripts.bench_eval with the Python of the harness.

stdin:  {"model": arguments of its vLLM model, "tasks": [task file, ...]}
stdout: {"load": seconds, <task>: {"seconds": seconds, "answers": what it keeps per item, in the order of the data}}
"""

import json
import sys
import time
from typing import Any

from lm_eval.evaluator import evaluate
from lm_eval.models.vllm_causallms import VLLM
from lm_eval.tasks import TaskManager


def main() -> None:
    order = json.load(sys.stdin)
    started = time.monotonic()
    model = VLLM(**order["model"])
    report: dict[str, Any] = {"load": time.monotonic() - started}
    manager = TaskManager(include_defaults=False)
    for path in order["tasks"]:
        report |= timed(model, manager.load([path]))
    print(json.dumps(report))


def timed(model: VLLM, tasks: Any) -> dict[str, Any]:
    """From building the requests to the scores; the data have been read before."""
    started = time.monotonic()
    result: Any = evaluate(model, tasks, bootstrap_iters=0)
    seconds = time.monotonic() - started
    return {
        name: {"seconds": seconds, "answers": [s["resps"] for s in sorted(samples, key=lambda s: s["doc_id"])]}
        for name, samples in result["samples"].items()
    }


if __name__ == "__main__":
    main()
