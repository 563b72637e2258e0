"""A thousand MoS adapters in one server, asked for by name: `make serve-demo`.

python -m scripts.serve_demo [--seconds 90] [--adapters 1000] [--clients 8]

Makes the adapters for a tiny random Llama (kept in cache/), starts `vllm serve` with the plugin on the loopback, and
asks it through the OpenAI client, the k-th adapter 1/k times as often as the first. Some three minutes on a laptop.
Ctrl-C ends the stream early; the table of what was measured comes all the same.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

from scripts.command import EXPECTED
from scripts.config import ROOT
from scripts.measure.serving_demo import Answer, Server, line, stream, summed, tensor_bytes
from scripts.measure.serving_inputs import WEIGHTS, Case, thousand

SLOTS = 8
END = "\r" if sys.stdout.isatty() else "\n"  # of the live line


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.serve_demo", description="A server of MoS adapters.")
    parser.add_argument("--seconds", type=float, default=90.0, help="of the stream")
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--cache-dir", type=Path, default=ROOT / "cache", help="for the base model and the adapters")
    given = parser.parse_args(arguments)
    if min(given.adapters, given.clients) < 1 or not given.seconds > 0:
        parser.error("--adapters and --clients must be at least 1, and --seconds above 0.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ended like by Ctrl-C, so that no server is left
    case = Case(blocks=8, hidden=64, rank=8, equivalent_rank=2, shards=4, adapters=given.adapters)
    print(f"Making {case.adapters:,} MoS adapters (r=8, e=2) ...", flush=True)
    try:
        folder = thousand(case, given.cache_dir)
        print("Starting vllm serve ...", flush=True)
        with Server(folder, case, on_host=max(case.adapters, SLOTS), slots=SLOTS) as server:
            server.wait()
            begun = time.monotonic()

            def show(answers: list[Answer], seconds: float) -> None:
                print(line(answers, seconds, server.metrics()), end=END, flush=True)

            answers = stream(server.url, case.adapters, given.clients, given.seconds, show)
            seconds, metrics = time.monotonic() - begun, server.metrics()
        print(f"\n\n{summed(answers, seconds, metrics, tensor_bytes(folder / 'lora' / '0' / WEIGHTS))}")
    except KeyboardInterrupt:
        sys.exit("\nStopped before any request.")
    except EXPECTED as error:
        sys.exit(f"error: {error}")
    if errors := [answer.error for answer in answers if answer.error]:
        sys.exit(f"error: {len(errors)} of {len(answers)} requests failed, the first with: {errors[0]}")


if __name__ == "__main__":
    main()
