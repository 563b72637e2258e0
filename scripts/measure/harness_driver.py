"""Times lm-evaluation-harness on task files; started by scripts.bench_eval with the Python of the harness.

stdin:  the arguments of its vLLM model as JSON, then a task file a line
stdout: {"load": seconds}, then {"seconds": seconds, "answers": what it keeps per item, in the order of the data} a line
"""

import json
import sys
import time
from typing import Any

from lm_eval.evaluator import evaluate
from lm_eval.models.vllm_causallms import VLLM
from lm_eval.tasks import TaskManager


def main() -> None:
    started = time.monotonic()
    model = VLLM(**json.loads(sys.stdin.readline()))
    print(json.dumps({"load": time.monotonic() - started}), flush=True)
    manager = TaskManager(include_defaults=False)
    for line in sys.stdin:
        model.model.reset_prefix_cache()
        print(json.dumps(timed(model, manager.load([line.strip()]))), flush=True)


def timed(model: VLLM, task: Any) -> dict[str, Any]:
    """From building the requests to the scores; the data have been read before."""
    started = time.monotonic()
    result: Any = evaluate(model, task, bootstrap_iters=0)
    seconds = time.monotonic() - started
    (samples,) = result["samples"].values()
    return {"seconds": seconds, "answers": [s["resps"] for s in sorted(samples, key=lambda s: s["doc_id"])]}


if __name__ == "__main__":
    main()
