"""Time and memory of MoS against PEFT's LoRA of the same rank, as ratios MoS / LoRA, in one process: `make bench`.

The two take turns, in alternating order, and each ratio is of two neighbouring runs, so that a machine that becomes
slower or faster meanwhile changes none of them. The table has the medians with 95% intervals. Half an hour on two
cores, which must be idle otherwise.
"""

import os
import platform
import tempfile
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from scripts.measure.training import BUDGET, COLUMNS, GRID, METHODS, construction, file_size, measure


def main() -> None:
    disable_progress_bar()
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} of {os.cpu_count()} CPUs, "
          f"torch {torch.__version__}; MoS with the parameters of LoRA at rank {BUDGET}, against LoRA of the same r\n"
          f"\n| base | hidden | batch x length | l | blocks | r | {' | '.join(COLUMNS)} |\n"
          f"{'| --- ' * (6 + len(COLUMNS))}|")  # fmt: skip
    for base in ("float32", "NF4"):
        for size in GRID:
            with tempfile.TemporaryDirectory() as folder:
                cells = measure(base, size, Path(folder))
            lead = (base, size.hidden, f"{size.batch}x{size.length}", size.shards, size.blocks, size.rank)
            print(f"| {' | '.join(map(str, lead))} | {' | '.join(cells)} |", flush=True)
    print(f"\nFile of LLaMA2-7B's adapter in bfloat16, over 2 bytes per trainable parameter: {file_size():.4f}")
    times = (f"{method} {construction(method):.1f} s" for method in METHODS)
    print(f"Construction on 80 blocks of LLaMA2-70B's shapes: {', '.join(times)}")


if __name__ == "__main__":
    main()
