"""Bring the tables of README.md and docs/evidence.md up to date with the committed results: `make readme`.

With `python -m scripts.readme --check` nothing is written; exit code 1 if a table is out of date.
"""

import sys

from data_prep.storage import write_text
from scripts.table.readme import PAGES, RESULTS, filled


def main(arguments: list[str]) -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        current = filled(text, RESULTS)
        if "--check" in arguments and current != text:
            sys.exit(f"error: a table of {page.name} is not what results/ holds; run make readme.")
        write_text(page, current)


if __name__ == "__main__":
    main(sys.argv[1:])
