"""Says which engine, device and sandbox this machine offers: `python -m scripts.doctor`.

Exit code 1 and one sentence if there is a GPU that torch does not use.
"""

import sys

from eval import sandbox
from scripts.measure import machine

if __name__ == "__main__":
    print(f"engine: {machine.engine()}\ndevice: {machine.device()}\nsandbox: {sandbox.protection()}")
    if problem := machine.gpu_problem():
        sys.exit(f"error: {problem}")
