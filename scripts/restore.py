"""Restore the published runs of a profile, so that its tables can be made again without training.

python -m scripts.restore profile=smol      (or `make restore PROFILE=smol`)

They have no weights: what was asked of them is answered, and a table asks for more in a sentence. A finished run that
is in `runs/` already stays as it is; an unfinished one is replaced, unless some process is training it.
"""

import sys
from pathlib import Path

from omegaconf import DictConfig

from scripts.command import entry_point
from scripts.table.archive import END, unpack
from scripts.table.publish import PUBLISHED


@entry_point
def main(cfg: DictConfig) -> None:
    source, target = PUBLISHED / cfg.profile / "runs", Path(cfg.runs_dir) / cfg.profile
    files = sorted(source.glob(f"*/*{END}"))
    if not files:
        raise FileNotFoundError(f"{source} holds no runs: those of the profile {cfg.profile} are not published.")
    new, held = 0, []
    for file in files:
        try:
            new += unpack(file, target / file.parent.name)
        except BlockingIOError as error:  # the others can be restored
            held.append(f"error: {error}")
    print(f"{target}: {new} of {len(files)} runs restored{', the others stay' if new < len(files) else ''}")
    if held:
        sys.exit("\n".join(held))


if __name__ == "__main__":
    main()
