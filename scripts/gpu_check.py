"""Try on this GPU, in ten minutes, all that the tables need, and measure what they will cost: `make gpu-check`.

Needs no gated model and no network. Where there is no GPU, or a package is missing, it says what it left out. A line
for each check: `ok`, `left`, or `FAIL:` with the remedy, which makes the exit code 1. What it measures is written to
configs/gpu/<this>.yaml, which `make plan` reads. docs/gpu.md explains each line.
"""

import sys
from importlib.util import find_spec

from scripts.check.gpu import checks
from scripts.check.steps import Step
from scripts.check.walk import walk


def main() -> None:
    measured: list[Step] = []
    failed = walk(checks(measured), sys.stdout)
    print(cost(measured))
    if failed:
        sys.exit(f"error: {len(failed)} checks failed; the lines that begin with FAIL say what to do.")


def cost(measured: list[Step]) -> str:
    """How long the tables will take here, or why that is not known."""
    if not measured:
        return "No training step was measured, so nothing is known of the time that `make tables PROFILE=paper` takes."
    if find_spec("hydra") is None:
        return "hydra-core is not installed, so the time of `make tables PROFILE=paper` cannot be planned."
    from scripts.check.rates import gpu_days, write_rates

    name = write_rates(measured)
    return (
        f"configs/gpu/{name}.yaml is written. `make tables PROFILE=paper` takes about {gpu_days(name):.0f} GPU-days "
        "here, if every example is as long as allowed (`make plan DATA=...` counts real ones)."
    )


if __name__ == "__main__":
    main()
