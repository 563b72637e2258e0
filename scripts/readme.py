"""Bring the tables of README.md up to date with the committed results: `python -m scripts.readme` (or `make readme`).

With `--check` nothing is written; exit code 1 if a table is out of date.
"""

import sys

from data_prep.storage import write_text
from scripts.table.readme import README, RESULTS, filled


def main(arguments: list[str]) -> None:
    text = README.read_text(encoding="utf-8")
    current = filled(text, RESULTS)
    if "--check" in arguments and current != text:
        sys.exit("error: a table of README.md is not what results/ holds; run make readme.")
    write_text(README, current)


if __name__ == "__main__":
    main(sys.argv[1:])
