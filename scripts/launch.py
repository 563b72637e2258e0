"""The end of a Slurm job's script: `python -m scripts.launch FOLDER` (configs/hydra/launcher/slurm.yaml)."""

import sys

from scripts.table.launch import settle

if __name__ == "__main__":
    settle(sys.argv[1])
